"""The 2048 best keys of each row, as cache slots.

Two launches. The first holds a chunk of a row in registers, guesses a bound that leaves 2048 to 4096 of it
and writes their positions down, in order; the second finds the exact threshold among these few and emits, in
order of position, ties to the lowest. Guesses change how soon a search ends, never what is chosen: nothing
depends on how many rows there are. Knows nothing of what logits are.

Letters: T rows  L columns  J chosen, 2048  P pages  M chunks of a row  R runs of C = 64 columns  S sample
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sparse_mla import check_tensor

TOPK = 2048
PAGE_TOKENS = 64  # as model.cache has it; kernels know no model
MIN_CHUNK = 4096
MAX_CHUNK = 32768
MOST_KEPT = 4096  # of a chunk


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """chunk: columns of a program of the first launch, a power of two. per_thread: logits a thread holds."""

    chunk: int = MAX_CHUNK
    per_thread: int = 32  # 64 in the largest chunk
    choose_per_thread: int = 16


CONFIG = SelectConfig()


def num_warps_for(block: int, per_thread: int) -> int:
    """Never so many that less than 64 registers of a thread are left for what is no logit."""
    return min(16 if block == MAX_CHUNK else 32, max(4, block // per_thread // 32))


def select_topk(
    logits_TL: Tensor, lengths_T: Tensor, pages_TP: Tensor, *, config: SelectConfig = CONFIG
) -> Tensor:
    """int32 [T, 2048]: slots of the largest logits, in order of position, -1 behind them.

    logits_TL: fp32; what lies at and after lengths_T (int32, 0 included) is not looked at. pages_TP: int32
    page numbers, or one row of them expanded to all. A row of up to 2048 columns gives all of them. NaN
    counts as the largest.
    """
    (num_rows, columns), device = logits_TL.shape, logits_TL.device
    check_tensor("logits_TL", logits_TL, torch.float32, (num_rows, columns), device)
    check_tensor("lengths_T", lengths_T, torch.int32, (num_rows,), device)
    own_TP = pages_TP if pages_TP.stride(0) else pages_TP[:1]  # one row of pages may stand for all
    check_tensor("pages_TP", own_TP, torch.int32, (len(own_TP), columns // PAGE_TOKENS), device)
    if not MIN_CHUNK <= config.chunk <= MAX_CHUNK or config.chunk & (config.chunk - 1):
        raise ValueError(f"chunk is {config.chunk}: expected a power of two from {MIN_CHUNK} to {MAX_CHUNK}")
    slots_TJ = lengths_T.new_empty(num_rows, TOPK)
    chunks = triton.cdiv(columns, config.chunk)
    if chunks * TOPK > MAX_CHUNK:
        raise ValueError(
            f"logits_TL has {columns} columns: at most {MAX_CHUNK // TOPK * config.chunk} with chunks of "
            f"{config.chunk}"
        )
    if num_rows == 0:
        return slots_TJ
    most = min(MOST_KEPT, MAX_CHUNK // triton.next_power_of_2(max(1, chunks)))
    chunk = min(config.chunk, max(MIN_CHUNK, triton.next_power_of_2(columns)))
    is_narrowed = columns > MOST_KEPT
    kept_TJ, kept_TM = slots_TJ, lengths_T
    if is_narrowed:
        kept_TJ = lengths_T.new_empty(num_rows, chunks * most)
        kept_TM = lengths_T.new_empty(num_rows, chunks)
        narrow_kernel[(chunks, num_rows)](
            logits_TL,
            lengths_T,
            kept_TJ,
            kept_TM,
            pages_TP.shape[1],
            K=TOPK,
            MOST=most,
            BLOCK=chunk,
            num_warps=num_warps_for(chunk, config.per_thread),
        )
    block = triton.next_power_of_2(chunks * most) if is_narrowed else MIN_CHUNK
    choose_kernel[(num_rows,)](
        logits_TL,
        lengths_T,
        kept_TJ,
        kept_TM,
        pages_TP,
        slots_TJ,
        pages_TP.shape[1],
        pages_TP.stride(0),
        chunks,
        K=TOPK,
        MOST=most,
        BLOCK=block,
        IS_NARROWED=is_narrowed,
        num_warps=num_warps_for(block, config.choose_per_thread),
    )
    return slots_TJ


def select_topk_reference(logits_TL: Tensor, lengths_T: Tensor, pages_TP: Tensor) -> Tensor:
    """The same by a stable sort, row by row."""
    slots_TJ = lengths_T.new_full((len(logits_TL), TOPK), -1)
    for logits_L, length, pages_P, slots_J in zip(
        logits_TL, lengths_T.tolist(), pages_TP, slots_TJ, strict=True
    ):
        order = torch.sort(logits_L[:length], descending=True, stable=True).indices[:TOPK].sort().values
        slots_J[: len(order)] = pages_P[order // PAGE_TOKENS] * PAGE_TOKENS + order % PAGE_TOKENS
    return slots_TJ


LEAST: tl.constexpr = tl.constexpr(-(2**31))  # below the key of every number
GREATEST: tl.constexpr = tl.constexpr(2**31 - 1)  # the key of NaN
SAMPLE: tl.constexpr = tl.constexpr(2048)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _key(value: tl.tensor) -> tl.tensor:
    """int32 in the order of the values. The sum makes -0 a 0 and every NaN the positive one (PTX ISA)."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _value(key: tl.tensor) -> tl.tensor:
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _quantile(count: tl.tensor, num: tl.tensor) -> tl.tensor:
    """Where a standard normal has count of num above it (Abramowitz and Stegun 26.2.22)."""
    share = tl.minimum(tl.maximum(count, 0.5), num - 0.5) / num
    t = tl.sqrt(-2 * tl.log(tl.minimum(share, 1 - share)))
    z = t - (2.30753 + 0.27061 * t) / (1 + t * (0.99229 + t * 0.04481))
    return tl.where(share < 0.5, z, -z)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _search(
    key: tl.tensor,
    num: tl.tensor,
    length: tl.tensor,
    bottom: tl.tensor,
    top: tl.tensor,
    K: tl.constexpr,
    MOST: tl.constexpr,
    STEP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(bound, room, kept): K to MOST keys lie above the bound, or fewer and it takes `room` ties to MOST.

    More than MOST of the num keys lie above low, fewer than K above high. Guesses go by a straight line
    between (bottom, 8 sigma below) and (top, 8 above), as for length normal values. STEP 7: begin by closing.
    """
    low, of_low, z_low = num * 0 + LEAST, num, _quantile(num.to(tl.float32), length)
    high, of_high, z_high = num * 0 + GREATEST, num * 0, z_low * 0 + 8.0
    if STEP == 0:
        z_low = z_low * 0 - 8.0
    else:
        z_high = _quantile(z_low * 0 + 0.5, length)
    aim: tl.constexpr = (K * MOST) ** 0.5
    z_aim = _quantile(z_low * 0 + aim, length)
    z_of_one = (_quantile(z_low * 0 + (aim - 32), length) - _quantile(z_low * 0 + (aim + 32), length)) / 64
    step = num * 0 + STEP
    is_open = num > MOST
    bound, room = low, num * 0
    while is_open:
        if step % 8 == 7:  # close in on the keys there are
            low = tl.min(tl.where(key > low, key, GREATEST)) - 1
            high = tl.max(tl.where(key <= high, key, LEAST))
            bottom, top = _value(low), _value(high)
        else:
            middle = (low & high) + ((low ^ high) >> 1)
            if step % 8 < 6:
                want = z_aim
                if K == MOST:  # to the far side of what is wanted, so that both ends close in
                    below, above = (of_low - K).to(tl.float32), (K - of_high).to(tl.float32)
                    near = tl.sqrt(tl.minimum(below, above))
                    near = tl.where(near > 2, near, 0.0)
                    want += z_of_one * tl.where(below < above, near, -near)
                guess = bottom + (top - bottom) * ((want - z_low) / (z_high - z_low))
                middle = tl.where(guess == guess, _key(guess), middle)
                middle = tl.minimum(tl.maximum(middle, low + 1), high - 1)
            count = tl.sum((key > middle).to(tl.int32))
            if count >= K:
                low, of_low, bottom = middle, count, _value(middle)
                z_low = _quantile(count.to(tl.float32), length)
            else:
                high, of_high, top = middle, count, _value(middle)
                z_high = _quantile(count.to(tl.float32), length)
        if of_low <= MOST:
            bound, room, is_open = low, num * 0, num < 0
        elif low + 1 == high:
            bound, room, is_open = high, MOST - of_high, num < 0
        step += 1
    return bound, room, tl.where(room > 0, MOST, of_low)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _quarters(x_RC: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Columns 0, 1, 2, 3 of each four, [R, 16]: as threads loaded them, so that none has to move."""
    ac, bd = tl.split(tl.reshape(x_RC, (x_RC.shape[0], 16, 2, 2)))
    a, c = tl.split(ac)
    b, d = tl.split(bd)
    return a, b, c, d


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _ranks(
    a: tl.tensor, b: tl.tensor, c: tl.tensor, d: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """How many there are up to and at each, in order of position."""
    b_num = b.to(tl.int32)
    c_num, d_num = b_num + c.to(tl.int32), b_num + c.to(tl.int32) + d.to(tl.int32)
    num = a.to(tl.int32) + d_num
    num_R = tl.sum(num, 1)
    at_a = tl.cumsum(num, 1) + (tl.cumsum(num_R, 0) - num_R)[:, None] - d_num
    return at_a, at_a + b_num, at_a + c_num, at_a + d_num


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _places(
    key_RC: tl.tensor, bound: tl.tensor, room: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Where each goes, in order: those above the bound and the first `room` that equal it; -1 for nowhere.

    In four vectors, as of _quarters: stores of rows would first move everything to other threads.
    """
    key_a, key_b, key_c, key_d = _quarters(key_RC)
    if room > 0:
        a, b, c, d = _ranks(key_a == bound, key_b == bound, key_c == bound, key_d == bound)
        key_a = tl.where((key_a == bound) & (a > room), LEAST, key_a)
        key_b = tl.where((key_b == bound) & (b > room), LEAST, key_b)
        key_c = tl.where((key_c == bound) & (c > room), LEAST, key_c)
        key_d = tl.where((key_d == bound) & (d > room), LEAST, key_d)
        bound -= 1
    is_a, is_b, is_c, is_d = key_a > bound, key_b > bound, key_c > bound, key_d > bound
    a, b, c, d = _ranks(is_a, is_b, is_c, is_d)
    flat: tl.constexpr = (key_RC.shape[0] * 16,)
    a, b = tl.reshape(tl.where(is_a, a, 0), flat) - 1, tl.reshape(tl.where(is_b, b, 0), flat) - 1
    c, d = tl.reshape(tl.where(is_c, c, 0), flat) - 1, tl.reshape(tl.where(is_d, d, 0), flat) - 1
    return a, b, c, d


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _store_slots(
    out_ptr: tl.tensor,
    place: tl.tensor,
    kept_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    at: tl.tensor,
    IS_NARROWED: tl.constexpr,
) -> None:
    position = at
    if IS_NARROWED:
        position = tl.load(kept_ptr + at, mask=place >= 0, other=0)
    page = tl.load(pages_ptr + position // 64, mask=place >= 0, other=0)
    tl.store(out_ptr + place, page * 64 + position % 64, mask=place >= 0)


@triton.jit(do_not_specialize=["num_pages"])  # type: ignore[untyped-decorator,unused-ignore]
def narrow_kernel(
    values_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    kept_ptr: tl.tensor,
    num_kept_ptr: tl.tensor,
    num_pages: tl.int32,
    K: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Positions of a chunk's candidates: K to MOST, or all it has, or its best MOST."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    part = row * tl.num_programs(0) + chunk
    num = tl.minimum(tl.load(lengths_ptr + row) - chunk * BLOCK, BLOCK)
    if num <= 0:
        tl.store(num_kept_ptr + part, 0)
        return
    values_ptr += row * num_pages * 64 + chunk * BLOCK
    at_RC = tl.arange(0, BLOCK // 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    is_there_RC = at_RC < num
    value_RC = tl.load(values_ptr + at_RC, mask=is_there_RC, other=0.0)
    key_RC = tl.where(is_there_RC, _key(value_RC), LEAST)

    # A first guess from runs of 32 all over the chunk.
    at_S = tl.arange(0, SAMPLE)
    at_S = (at_S // 32) * (num // (SAMPLE // 32)) + at_S % 32
    value_S = tl.load(values_ptr + at_S, mask=at_S < num, other=0.0)
    value_S = tl.where(tl.abs(value_S) < 1e18, value_S, 0.0)
    mean = tl.sum(value_S) / SAMPLE
    spread = 8 * tl.sqrt(tl.maximum(tl.sum(value_S * value_S) / SAMPLE - mean * mean, 0.0))
    bound, room, kept = _search(key_RC, num, num.to(tl.float32), mean - spread, mean + spread, K, MOST, 0)
    tl.store(num_kept_ptr + part, kept)

    at = tl.arange(0, BLOCK // 4) * 4 + chunk * BLOCK
    a, b, c, d = _places(key_RC, bound, room)
    kept_ptr += part * MOST
    tl.store(kept_ptr + a, at, mask=a >= 0)
    tl.store(kept_ptr + b, at + 1, mask=b >= 0)
    tl.store(kept_ptr + c, at + 2, mask=c >= 0)
    tl.store(kept_ptr + d, at + 3, mask=d >= 0)


@triton.jit(do_not_specialize=["num_pages", "page_stride", "chunks"])  # type: ignore[untyped-decorator,unused-ignore]
def choose_kernel(
    values_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    kept_ptr: tl.tensor,
    num_kept_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_pages: tl.int32,
    page_stride: tl.int32,
    chunks: tl.int32,
    K: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_NARROWED: tl.constexpr,
) -> None:
    """The row's slots, from its candidates' positions or, where not IS_NARROWED, from all it has."""
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths_ptr + row)
    at_L = tl.arange(0, BLOCK)
    if IS_NARROWED:
        chunk_L = at_L // MOST
        num_L = tl.load(num_kept_ptr + row * chunks + chunk_L, mask=chunk_L < chunks, other=0)
        is_there_L = at_L % MOST < num_L
        kept_ptr += row * chunks * MOST
        position_L = tl.load(kept_ptr + at_L, mask=is_there_L, other=0)
    else:
        is_there_L = at_L < length
        position_L = at_L
    value_L = tl.load(values_ptr + row * num_pages * 64 + position_L, mask=is_there_L, other=0.0)
    key_RC = tl.reshape(tl.where(is_there_L, _key(value_L), LEAST), (BLOCK // 64, 64))
    num = tl.sum(is_there_L.to(tl.int32))
    bound, room, _ = _search(key_RC, num, tl.maximum(length, 2).to(tl.float32), num * 0.0, num * 0.0, K, K, 7)

    a, b, c, d = _places(key_RC, bound, room)
    out_ptr += row * K
    pages_ptr += row * page_stride
    at = tl.arange(0, BLOCK // 4) * 4
    _store_slots(out_ptr, a, kept_ptr, pages_ptr, at, IS_NARROWED)
    _store_slots(out_ptr, b, kept_ptr, pages_ptr, at + 1, IS_NARROWED)
    _store_slots(out_ptr, c, kept_ptr, pages_ptr, at + 2, IS_NARROWED)
    _store_slots(out_ptr, d, kept_ptr, pages_ptr, at + 3, IS_NARROWED)
    rest = tl.arange(0, K)
    tl.store(out_ptr + rest, rest * 0 - 1, mask=rest >= num)
