"""A sampled token of each row of logits: what top_k, top_p and min_p leave, and where the noise falls in it.

What model/sampler.py does, without a sort. One program takes a row. Where a cut is wanted it searches the
logit at which it lies: each pass over the row sums what is above three bounds, which quarters where the cut
can be. Then the noise falls on what is left in the order of ids. A row's sums are taken in one order, so its
choice knows no other row. Knows nothing of who asks.

Letters: B rows of logits  R rows to draw from  V vocabulary
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sparse_mla import check_tensor

BLOCK = 8192
NUM_WARPS = 32
ASKED = tl.constexpr(5)  # numbers of a row: temperature, top_k, top_p, min_p, noise

NOWHERE = tl.constexpr(0x7FFFFFFF)  # a depth that no logit has
BY_VALUE = tl.constexpr(4)  # passes that quarter values, until those left are a thousandth or so


def choose_token(logits_BV: Tensor, rows_R: Tensor, asked_RA: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens int32 [R], their log probabilities fp32 [R], of the logits as they are).

    logits_BV: fp32, finite in these rows. rows_R: int32. asked_RA: fp64, of each row the temperature (> 0),
    how many tokens are left at most (V: all), the least share of those that is left (2: all), the least
    probability as a share of the likeliest's (0: any), and the noise, from 0 to below 1.
    """
    (num_rows, width), device, count = logits_BV.shape, logits_BV.device, len(rows_R)
    check_tensor("logits_BV", logits_BV, torch.float32, (num_rows, width), device)
    check_tensor("rows_R", rows_R, torch.int32, (count,), device)
    check_tensor("asked_RA", asked_RA, torch.float64, (count, ASKED.value), device)
    tokens_R = torch.empty_like(rows_R)
    logprobs_R = torch.empty(count, dtype=torch.float32, device=device)
    _choose_token[(count,)](
        logits_BV,
        rows_R,
        asked_RA,
        tokens_R,
        logprobs_R,
        width,
        BLOCK=BLOCK,
        NUM_BLOCKS=triton.next_power_of_2(triton.cdiv(width, BLOCK)),
        num_warps=NUM_WARPS,
    )
    return tokens_R, logprobs_R


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _depths(
    row_ptr: tl.tensor, first: tl.tensor, width: tl.tensor, top: tl.tensor, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """How far logits of a block are below the largest, inf behind the last; and the same as integers.

    The bits of fp32 numbers that are not negative are in their order.
    """
    v = first + tl.arange(0, BLOCK)
    depth = top - tl.load(row_ptr + v, mask=v < width, other=float("-inf"))
    return depth, depth.to(tl.int32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _measure(
    row_ptr: tl.tensor,
    first: tl.tensor,
    width: tl.tensor,
    top: tl.tensor,
    cold: tl.tensor,
    BY_COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The bits of a block's depths, and what each counts: one, or its weight beside the likeliest's."""
    depth, bits = _depths(row_ptr, first, width, top, BLOCK)
    if BY_COUNT:
        weight = tl.where(first + tl.arange(0, BLOCK) < width, 1.0, 0.0)
    else:
        weight = tl.exp(-depth * cold)
    return bits, weight


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _search(
    row_ptr: tl.tensor,
    width: tl.tensor,
    top: tl.tensor,
    cold: tl.tensor,
    end: tl.tensor,
    bar: tl.tensor,
    BY_COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The least depth, as bits, up to which all together reach the bar; and what those before it have.

    What is below a bound is summed in one order for every bound, so more of it is never less. end: bits
    below which everything is, which reaches the bar.
    """
    low, high = end * 0, end
    before = top * 0.0
    passes = end * 0
    while high - low > 1:
        if passes < BY_VALUE:
            near, far = low.to(tl.float32, bitcast=True), (high - 1).to(tl.float32, bitcast=True)
            quarter = (far - near) * 0.25
            one = (near + quarter).to(tl.int32, bitcast=True)
            two = (near + 2 * quarter).to(tl.int32, bitcast=True)
            three = (near + 3 * quarter).to(tl.int32, bitcast=True)
        else:
            step = (high - low + 3) // 4
            one, two, three = low + step, low + 2 * step, low + 3 * step
        one = tl.minimum(tl.maximum(one, low), high)
        two = tl.minimum(tl.maximum(two, one), high)
        three = tl.minimum(tl.maximum(three, two), high)
        sum_1 = tl.zeros((BLOCK,), tl.float32)
        sum_2 = tl.zeros((BLOCK,), tl.float32)
        sum_3 = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, width, BLOCK):
            bits, weight = _measure(row_ptr, first, width, top, cold, BY_COUNT, BLOCK)
            sum_1 += tl.where(bits < one, weight, 0.0)
            sum_2 += tl.where(bits < two, weight, 0.0)
            sum_3 += tl.where(bits < three, weight, 0.0)
        below_1, below_2, below_3 = tl.sum(sum_1, axis=0), tl.sum(sum_2, axis=0), tl.sum(sum_3, axis=0)
        if below_3 < bar:
            low, before = three, below_3
        elif below_2 < bar:
            low, before, high = two, below_2, three
        elif below_1 < bar:
            low, before, high = one, below_1, two
        else:
            high = one
        passes += 1
    return low, before


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _edge(
    row_ptr: tl.tensor,
    width: tl.tensor,
    top: tl.tensor,
    cold: tl.tensor,
    end: tl.tensor,
    most: tl.tensor,
    share: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """What top_k, then top_p leave: depths (as bits) before the first, and tokens at it up to the second."""
    edge, ties = end * 0 + NOWHERE, end * 0 + NOWHERE
    if most < width:
        edge, before = _search(row_ptr, width, top, cold, end, most, True, BLOCK)
        ties = (most - before).to(tl.int32)
    if share < 1.0:
        sums = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, width, BLOCK):
            bits, weight = _measure(row_ptr, first, width, top, cold, False, BLOCK)
            sums += tl.where(bits < edge, weight, 0.0)
        left = tl.sum(sums, axis=0)
        if edge < NOWHERE:
            left += ties * tl.exp(-edge.to(tl.float32, bitcast=True) * cold)
        bar = tl.maximum(left * share, 1e-30)
        own_edge, before = _search(
            row_ptr, width, top, cold, tl.minimum(edge, end - 1) + 1, bar, False, BLOCK
        )
        weight = tl.maximum(tl.exp(-own_edge.to(tl.float32, bitcast=True) * cold), 1e-38)
        own_ties = tl.minimum(tl.maximum(tl.ceil((bar - before) / weight), 1.0), 1e9).to(tl.int32)
        ties = tl.where(own_edge < edge, own_ties, tl.minimum(ties, own_ties))
        edge = own_edge
    last_tie = end * 0 + NOWHERE
    if edge < NOWHERE:
        seen = end * 0
        for first in range(0, width, BLOCK):
            _, bits = _depths(row_ptr, first, width, top, BLOCK)
            is_tie = (bits == edge).to(tl.int32)
            here = tl.sum(is_tie, axis=0)
            if (seen < ties) & (seen + here >= ties):
                v = first + tl.arange(0, BLOCK)
                is_last = (is_tie > 0) & (seen + tl.cumsum(is_tie, axis=0) == ties)
                last_tie = tl.max(tl.where(is_last, v, 0), axis=0)
            seen += here
    return edge, last_tie


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _choose_token(
    logits_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    asked_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    logprobs_ptr: tl.tensor,
    width: tl.int32,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
) -> None:
    place = tl.program_id(0)
    row_ptr = logits_ptr + tl.load(rows_ptr + place).to(tl.int64) * width
    asked_ptr += place * ASKED
    cold = (1.0 / tl.load(asked_ptr)).to(tl.float32)
    most = tl.load(asked_ptr + 1).to(tl.float32)
    share = tl.load(asked_ptr + 2).to(tl.float32)
    least = tl.load(asked_ptr + 3).to(tl.float32)
    noise = tl.load(asked_ptr + 4)

    tops = tl.full((BLOCK,), float("-inf"), tl.float32)
    bottoms = tl.full((BLOCK,), float("inf"), tl.float32)
    for first in range(0, width, BLOCK):
        v = first + tl.arange(0, BLOCK)
        value = tl.load(row_ptr + v, mask=v < width, other=float("-inf"))
        tops = tl.maximum(tops, value)
        bottoms = tl.minimum(bottoms, tl.where(v < width, value, float("inf")))
    top = tl.max(tops, axis=0)
    end = (top - tl.min(bottoms, axis=0)).to(tl.int32, bitcast=True) + 1

    edge, last_tie = _edge(row_ptr, width, top, cold, end, most, share, BLOCK)

    block = tl.arange(0, NUM_BLOCKS)
    sums_N = tl.zeros((NUM_BLOCKS,), tl.float64)
    whole = tl.zeros((BLOCK,), tl.float32)  # at temperature 1, of all
    for first in range(0, width, BLOCK):
        weight = _left(row_ptr, first, width, top, cold, edge, last_tie, least, BLOCK)
        sums_N = tl.where(block == first // BLOCK, tl.sum(weight, axis=0), sums_N)
        depth, _ = _depths(row_ptr, first, width, top, BLOCK)
        whole += tl.exp(-depth)
    ends_N = tl.cumsum(sums_N, axis=0)
    total = tl.max(ends_N, axis=0)
    bar = noise * total
    bar = tl.where(bar < total, bar, total * 0.9999999999999998)
    before = tl.max(tl.where(ends_N <= bar, ends_N, 0.0), axis=0)
    first = tl.sum((ends_N <= bar).to(tl.int32), axis=0) * BLOCK
    v = first + tl.arange(0, BLOCK)
    weight = _left(row_ptr, first, width, top, cold, edge, last_tie, least, BLOCK)
    token = tl.min(tl.where((weight > 0) & (before + tl.cumsum(weight, axis=0) > bar), v, NOWHERE), axis=0)
    # sums of a scan and of a tree differ in their last bit
    token = tl.minimum(token, tl.max(tl.where(weight > 0, v, 0), axis=0))
    tl.store(tokens_ptr + place, token)
    logprob = tl.load(row_ptr + token) - top - tl.log(tl.sum(whole, axis=0))
    tl.store(logprobs_ptr + place, logprob)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _left(
    row_ptr: tl.tensor,
    first: tl.tensor,
    width: tl.tensor,
    top: tl.tensor,
    cold: tl.tensor,
    edge: tl.tensor,
    last_tie: tl.tensor,
    least: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Weights of a block's tokens in fp64, 0 of those that are cut."""
    bits, weight = _measure(row_ptr, first, width, top, cold, False, BLOCK)
    v = first + tl.arange(0, BLOCK)
    is_left = (bits < edge) | ((bits == edge) & (v <= last_tie))
    return tl.where(is_left & (weight >= least) & (v < width), weight, 0.0).to(tl.float64)
