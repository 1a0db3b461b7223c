"""The 2048 best keys of each row, as cache slots.

One program holds up to 32,768 logits of a row in registers and closes in on the threshold by counting, with
guesses by interpolation between halvings; guesses change how soon it ends, never what it chooses. It then
emits in order of position, ties to the lowest. Longer rows are cut into chunks whose choices are merged by
the same program. Exact, so that nothing depends on how many rows there are. Knows nothing of what logits are.

Letters: T rows  L columns  J chosen, 2048  P pages  M chunks of a row
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from kernels.sparse_mla import check_tensor

TOPK = 2048
PAGE_TOKENS = 64  # as model.cache has it; kernels know no model
MIN_CHUNK = 4096
MAX_CHUNK = 32768  # what 1024 threads can hold in registers


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """chunk: columns of a program, a power of two; longer rows are cut. emit_tile: columns per prefix sum."""

    chunk: int = MAX_CHUNK
    emit_tile: int = 2048  # 4096 spills in the largest chunk
    most_warps: int = 32
    guess: bool = True


CONFIG = SelectConfig()


def num_warps_for(block: int, config: SelectConfig) -> int:
    """16 logits a thread, more in the largest blocks."""
    return min(config.most_warps, block // 512)


def select_topk(
    logits_TL: Tensor, lengths_T: Tensor, pages_TP: Tensor, *, config: SelectConfig = CONFIG
) -> Tensor:
    """int32 [T, 2048]: slots of the largest logits, in order of position, -1 behind them.

    logits_TL: fp32; what lies at and after lengths_T (int32, 0 included) is not looked at. pages_TP: int32
    page numbers. A row of up to 2048 columns gives all of them. NaN counts as the largest.
    """
    (num_rows, columns), device = logits_TL.shape, logits_TL.device
    check_tensor("logits_TL", logits_TL, torch.float32, (num_rows, columns), device)
    check_tensor("lengths_T", lengths_T, torch.int32, (num_rows,), device)
    check_tensor("pages_TP", pages_TP, torch.int32, (num_rows, columns // PAGE_TOKENS), device)
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
    if chunks <= 1:
        _launch(logits_TL, lengths_T, lengths_T, pages_TP, slots_TJ, slots_TJ, 1, config, is_merge=False)
        return slots_TJ
    key_TJ = lengths_T.new_empty(num_rows, chunks * TOPK)
    position_TJ = torch.empty_like(key_TJ)
    _launch(logits_TL, lengths_T, lengths_T, pages_TP, position_TJ, key_TJ, chunks, config, is_merge=False)
    _launch(key_TJ, position_TJ, lengths_T, pages_TP, slots_TJ, slots_TJ, 1, config, is_merge=True)
    return slots_TJ


def _launch(
    values_TL: Tensor,
    position_TL: Tensor,
    lengths_T: Tensor,
    pages_TP: Tensor,
    out_TJ: Tensor,
    key_TJ: Tensor,
    chunks: int,
    config: SelectConfig,
    *,
    is_merge: bool,
) -> None:
    """One pass: of a row's chunks, or of what they chose. position_TL only where is_merge."""
    num_rows, columns = values_TL.shape
    block = config.chunk if chunks > 1 else max(MIN_CHUNK, triton.next_power_of_2(columns))
    select_topk_kernel[(chunks, num_rows)](
        values_TL,
        position_TL,
        lengths_T,
        pages_TP,
        out_TJ,
        key_TJ,
        columns,
        pages_TP.shape[1],
        K=TOPK,
        BLOCK=block,
        TILE=min(block, config.emit_tile),
        IS_MERGE=is_merge,
        IS_PART=chunks > 1,
        GUESS=config.guess,
        num_warps=num_warps_for(block, config),
    )


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


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _keys(values_ptr: tl.tensor, at: tl.tensor, is_there: tl.tensor, IS_MERGE: tl.constexpr) -> tl.tensor:
    """int32 in the order of the values; LEAST where there is none."""
    if IS_MERGE:
        return tl.load(values_ptr + at, mask=is_there, other=LEAST)
    bits = tl.load(values_ptr + at, mask=is_there, other=0.0).to(tl.int32, bitcast=True)
    bits = tl.where(bits == LEAST, 0, bits)  # -0 ties with 0
    bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, bits)  # every NaN is the largest
    return tl.where(is_there, bits ^ ((bits >> 31) & 0x7FFFFFFF), LEAST)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _value(key: tl.tensor) -> tl.tensor:
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _threshold(key: tl.tensor, num: tl.tensor, K: tl.constexpr, GUESS: tl.constexpr) -> tl.tensor:
    """A key with at most K above it, and K at least when those equal to it count too.

    low has K or more at or above it, high has fewer: in int64, so that no middle overflows.
    """
    low = tl.min(tl.where(key == LEAST, 0x7FFFFFFF, key)).to(tl.int64)
    high = tl.max(key).to(tl.int64) + 1
    of_low, of_high = num, num * 0
    step = num * 0
    while (high - low > 1) & (of_low != K):
        middle = (low + high) >> 1
        if GUESS:
            if step % 2 == 0:  # counts fall about exponentially with the value
                bottom, top = _value(low.to(tl.int32)), _value((high - 1).to(tl.int32))
                share = tl.log2(of_low.to(tl.float32) / K) / tl.log2(of_low.to(tl.float32) / (of_high + 0.5))
                guess = bottom + (top - bottom) * share
                bits = tl.where(guess == guess, guess, 0.0).to(tl.int32, bitcast=True)
                guessed = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
                middle = tl.minimum(tl.maximum(guessed, low + 1), high - 1)
            elif step % 4 == 1:  # half way by value, which for what is spread widely is not half way by bits
                bottom, top = _value(low.to(tl.int32)), _value((high - 1).to(tl.int32))
                half = bottom * 0.5 + top * 0.5
                bits = tl.where(half == half, half, 0.0).to(tl.int32, bitcast=True)
                guessed = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
                middle = tl.minimum(tl.maximum(guessed, low + 1), high - 1)
        count = tl.sum((key >= middle.to(tl.int32)).to(tl.int32))
        if count >= K:
            low, of_low = middle, count
        else:
            high, of_high = middle, count
        step += 1
    return tl.where(of_low == K, low - 1, low).to(tl.int32)


@triton.jit(do_not_specialize=["columns", "num_pages"])  # type: ignore[untyped-decorator,unused-ignore]
def select_topk_kernel(
    values_ptr: tl.tensor,
    position_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    out_ptr: tl.tensor,
    key_ptr: tl.tensor,
    columns: tl.int32,
    num_pages: tl.int32,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    IS_MERGE: tl.constexpr,
    IS_PART: tl.constexpr,
    GUESS: tl.constexpr,
) -> None:
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    values_ptr += row * columns + chunk * BLOCK
    if IS_MERGE:
        end = columns
    else:
        end = tl.minimum(tl.load(lengths_ptr + row) - chunk * BLOCK, BLOCK)
    every = tl.arange(0, BLOCK)
    row_key = _keys(values_ptr, every, every < end, IS_MERGE)
    num = tl.sum((row_key != LEAST).to(tl.int32))
    threshold = num * 0 + LEAST
    if num > K:
        threshold = _threshold(row_key, num, K, GUESS)
    room = K - tl.sum((row_key > threshold).to(tl.int32))  # for those equal to it, the first ones

    out_ptr += (row * tl.num_programs(0) + chunk) * K
    key_ptr += (row * tl.num_programs(0) + chunk) * K
    above_before, ties_before = num * 0, num * 0
    for start in tl.range(0, end, TILE):
        at = start + tl.arange(0, TILE)
        key = _keys(values_ptr, at, at < end, IS_MERGE)
        is_above, is_tie = key > threshold, (key == threshold) & (key != LEAST)
        counts = tl.cumsum(is_above.to(tl.int32) + (is_tie.to(tl.int32) << 16), 0)
        above, ties = above_before + (counts & 0xFFFF), ties_before + (counts >> 16)
        is_chosen = is_above | (is_tie & (ties <= room))
        place = above + tl.minimum(ties, room) - 1
        if IS_MERGE:
            position = tl.load(position_ptr + row * columns + at, mask=is_chosen, other=0)
        else:
            position = chunk * BLOCK + at
        if IS_PART:
            tl.store(out_ptr + place, position, mask=is_chosen)
            tl.store(key_ptr + place, key, mask=is_chosen)
        else:
            page = tl.load(pages_ptr + row * num_pages + position // 64, mask=is_chosen, other=0)
            tl.store(out_ptr + place, page * 64 + position % 64, mask=is_chosen)
        above_before += tl.sum(is_above.to(tl.int32))
        ties_before += tl.sum(is_tie.to(tl.int32))
    chosen = above_before + tl.minimum(ties_before, room)
    rest = tl.arange(0, K)
    if IS_PART:
        tl.store(key_ptr + rest, rest * 0 + LEAST, mask=rest >= chosen)
    else:
        tl.store(out_ptr + rest, rest * 0 - 1, mask=rest >= chosen)
