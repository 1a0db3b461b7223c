"""The likeliest token of each row of logits, and its log probability.

A row is cut into chunks by its width alone; their maxima and sums are combined in order, so a row's bits know
no other. Knows nothing of what else a sampler may be asked.

Letters: R rows  V vocabulary  M chunks of a row
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 4096
NUM_WARPS = 8


def greedy(logits_RV: Tensor, tokens_R: Tensor, logprobs_R: Tensor, finite_R: Tensor) -> None:
    """Fill tokens_R (int32, ties to the lowest), logprobs_R (fp32) and finite_R (int32: all were).

    logits_RV: fp32. A row that is not finite gives some token.
    """
    (rows, width), device = logits_RV.shape, logits_RV.device
    if logits_RV.dtype != torch.float32 or not logits_RV.is_contiguous():
        raise ValueError(f"logits are {logits_RV.dtype} {list(logits_RV.shape)}: expected fp32, dense")
    for name, out_R, dtype in (
        ("tokens", tokens_R, torch.int32),
        ("logprobs", logprobs_R, torch.float32),
        ("finite", finite_R, torch.int32),
    ):
        if out_R.shape != (rows,) or out_R.dtype != dtype or out_R.device != device:
            raise ValueError(f"{name} are {out_R.dtype} {list(out_R.shape)}: expected {dtype} [{rows}]")
    chunks = triton.cdiv(width, CHUNK)
    parts_RM = [torch.empty(rows, chunks, dtype=dtype, device=device) for dtype in PART_DTYPES]
    _of_chunk[(chunks, rows)](logits_RV, *parts_RM, width, BLOCK=CHUNK, num_warps=NUM_WARPS)
    block = triton.next_power_of_2(chunks)
    _of_row[(rows,)](*parts_RM, tokens_R, logprobs_R, finite_R, chunks, BLOCK=block, num_warps=1)


PART_DTYPES = (torch.float32, torch.int32, torch.float32, torch.int32)  # top, where, sum of exp, how many odd


def greedy_reference(logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens int64, logprobs fp64, finite bool)."""
    tokens_R = logits_RV.argmax(-1)
    logprobs_RV = torch.log_softmax(logits_RV.double(), -1)
    return tokens_R, logprobs_RV.gather(1, tokens_R[:, None])[:, 0], torch.isfinite(logits_RV).all(-1)


@triton.jit(do_not_specialize=["width"])  # type: ignore[untyped-decorator,unused-ignore]
def _of_chunk(
    logits_ptr: tl.tensor,
    top_ptr: tl.tensor,
    at_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    odd_ptr: tl.tensor,
    width: tl.int32,
    BLOCK: tl.constexpr,
) -> None:
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    v = chunk * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits_ptr + row * width + v, mask=v < width, other=float("-inf"))
    top = tl.max(value, axis=0)
    at = tl.min(tl.where(value == top, v, width), axis=0)
    odd = tl.sum((((value - value) != 0) & (v < width)).to(tl.int32), axis=0)
    part = row * tl.num_programs(0) + chunk
    tl.store(top_ptr + part, top)
    tl.store(at_ptr + part, at)
    tl.store(sum_ptr + part, tl.sum(tl.exp(value - top), axis=0))
    tl.store(odd_ptr + part, odd)


@triton.jit(do_not_specialize=["chunks"])  # type: ignore[untyped-decorator,unused-ignore]
def _of_row(
    top_ptr: tl.tensor,
    at_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    odd_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    logprobs_ptr: tl.tensor,
    finite_ptr: tl.tensor,
    chunks: tl.int32,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    m = tl.arange(0, BLOCK)
    inside = m < chunks
    part = row.to(tl.int64) * chunks + m
    top_M = tl.load(top_ptr + part, mask=inside, other=float("-inf"))
    top = tl.max(top_M, axis=0)
    at = tl.min(tl.where(top_M == top, tl.load(at_ptr + part, mask=inside, other=2**30), 2**30), axis=0)
    total = tl.sum(tl.load(sum_ptr + part, mask=inside, other=0.0) * tl.exp(top_M - top), axis=0)
    odd = tl.sum(tl.load(odd_ptr + part, mask=inside, other=0), axis=0)
    tl.store(tokens_ptr + row, tl.where(odd == 0, at, 0))  # among NaN there is no largest
    tl.store(logprobs_ptr + row, -tl.log(total))
    tl.store(finite_ptr + row, (odd == 0).to(tl.int32))
