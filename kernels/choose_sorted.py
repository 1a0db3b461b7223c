"""A place in each row of sorted logits, by its noise: the inverse of the cumulative distribution.

What model/sampler.py does after its sort, for top_k, top_p and min_p. One program takes a row from its
beginning to its end in steps of one size, sums in fp64: a row's choice knows no other row. Knows nothing of
what was sorted.

Letters: R rows  V vocabulary
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sparse_mla import check_tensor

BLOCK = 4096
NUM_WARPS = 8


def choose_sorted(
    sorted_RV: Tensor, counts_R: Tensor, top_p_R: Tensor, min_p_R: Tensor, noise_R: Tensor
) -> Tensor:
    """int32 [R]: of the likeliest tokens that all three leave, the one that noise_R (0 to 1) falls on.

    sorted_RV: fp32, descending, the largest 0. counts_R: int32, at most so many (top_k; V: all). top_p_R: the
    least share that what is left has (2: all). min_p_R: of the likeliest's probability (0: all). These and
    the noise are fp64.
    """
    rows, width = sorted_RV.shape
    device = sorted_RV.device
    check_tensor("sorted_RV", sorted_RV, torch.float32, (rows, width), device)
    check_tensor("counts_R", counts_R, torch.int32, (rows,), device)
    for name, values_R in (("top_p_R", top_p_R), ("min_p_R", min_p_R), ("noise_R", noise_R)):
        check_tensor(name, values_R, torch.float64, (rows,), device)
    places_R = torch.empty_like(counts_R)
    _choose_sorted[(rows,)](
        sorted_RV, counts_R, top_p_R, min_p_R, noise_R, places_R, width, BLOCK=BLOCK, num_warps=NUM_WARPS
    )
    return places_R


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _shares(
    row_ptr: tl.tensor, first: tl.tensor, count: tl.tensor, total: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """Probabilities of places first ... first + BLOCK, fp64; 0 from count on."""
    at = first + tl.arange(0, BLOCK)
    return tl.exp(tl.load(row_ptr + at, mask=at < count, other=float("-inf"))).to(tl.float64) / total


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator,unused-ignore]
def _choose_sorted(
    sorted_ptr: tl.tensor,
    counts_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    noise_ptr: tl.tensor,
    places_ptr: tl.tensor,
    width: tl.int32,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    row_ptr = sorted_ptr + row.to(tl.int64) * width
    count = tl.minimum(tl.load(counts_ptr + row), width)
    top_p, min_p = tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
    zero = min_p * 0.0
    total = zero
    for first in range(0, count, BLOCK):
        total += tl.sum(_shares(row_ptr, first, count, zero + 1.0, BLOCK), axis=0)

    keep = count * 0
    before = zero
    for first in range(0, count, BLOCK):
        share = _shares(row_ptr, first, count, total, BLOCK)
        is_kept = (before + tl.cumsum(share, axis=0) - share < top_p) & (share * total >= min_p)
        is_kept = is_kept & (first + tl.arange(0, BLOCK) < count)
        keep += tl.sum(is_kept.to(tl.int32), axis=0)
        before += tl.sum(share, axis=0)
    keep = tl.maximum(keep, 1)

    kept = zero
    for first in range(0, keep, BLOCK):
        kept += tl.sum(_shares(row_ptr, first, keep, total, BLOCK), axis=0)

    bar = tl.load(noise_ptr + row) * kept
    place = count * 0
    before = zero
    for first in range(0, keep, BLOCK):
        share = _shares(row_ptr, first, keep, total, BLOCK)
        is_before = before + tl.cumsum(share, axis=0) <= bar
        is_before = is_before & (first + tl.arange(0, BLOCK) < keep)
        place += tl.sum(is_before.to(tl.int32), axis=0)
        before += tl.sum(share, axis=0)
    tl.store(places_ptr + row, tl.minimum(place, keep - 1))
