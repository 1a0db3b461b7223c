"""Rows times a narrow bf16 weight: the gate and the indexer's head weights.

The weight is the M operand as in kernels/fp8_gemm.py, and K is always split, since a few hundred outputs fill
no GPU. Knows nothing of what the outputs are for.

Letters: R rows  K inner dimension  N outputs  S splits of K
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N = 64
BLOCK_K = 128
NUM_WARPS = 4
NUM_STAGES = 4
MOST_ROWS_OF_A_TILE = 64
MANY_TILE = 128
MANY_WARPS = 8
MANY_STAGES = 3


def bf16_matmul(x_RK: Tensor, weight_NK: Tensor, out_SRN: Tensor) -> None:
    """The S parts of x @ weight.T, fp32 [S, R, N]; their sum in order is the product.

    x_RK, weight_NK: bf16. N a multiple of 64, K of 128 * S.
    """
    (rows, inner), (outputs, _), splits = x_RK.shape, weight_NK.shape, out_SRN.shape[0]
    if x_RK.dtype != torch.bfloat16 or weight_NK.dtype != torch.bfloat16 or out_SRN.dtype != torch.float32:
        raise ValueError(
            f"x is {x_RK.dtype}, weight {weight_NK.dtype}, out {out_SRN.dtype}: bf16, bf16, fp32"
        )
    if weight_NK.shape[1] != inner or out_SRN.shape[1:] != (rows, outputs):
        raise ValueError(f"{list(x_RK.shape)} x {list(weight_NK.shape)} is not {list(out_SRN.shape)}")
    if outputs % BLOCK_N or inner % (BLOCK_K * splits):
        raise ValueError(f"N {outputs} and K {inner}: multiples of {BLOCK_N} and {BLOCK_K} x {splits} splits")
    block_r = min(MOST_ROWS_OF_A_TILE, max(16, triton.next_power_of_2(rows)))
    grid = (triton.cdiv(rows, block_r), outputs // BLOCK_N, splits)
    _bf16_gemm[grid](
        x_RK,
        weight_NK,
        out_SRN,
        rows,
        N=outputs,
        K=inner,
        SPLITS=splits,
        BLOCK_N=BLOCK_N,
        BLOCK_R=block_r,
        BLOCK_K=BLOCK_K,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )


def bf16_matmul_many(x_RK: Tensor, weight_NK: Tensor, out_RN: Tensor, *, splits: int = 1) -> None:
    """x @ weight.T, fp32 [R, N], for many rows: sums of `splits` parts of K are added in order.

    The bits are those of bf16_matmul with so many parts, added in order.
    """
    (rows, inner), (outputs, width) = x_RK.shape, weight_NK.shape
    if x_RK.dtype != torch.bfloat16 or weight_NK.dtype != torch.bfloat16 or out_RN.dtype != torch.float32:
        raise ValueError(f"x is {x_RK.dtype}, weight {weight_NK.dtype}, out {out_RN.dtype}: bf16, bf16, fp32")
    if width != inner or out_RN.shape != (rows, outputs) or not out_RN.is_contiguous():
        raise ValueError(f"{list(x_RK.shape)} x {list(weight_NK.shape)} is not {list(out_RN.shape)}")
    block_n = min(MANY_TILE, outputs)
    if outputs % block_n or outputs % BLOCK_N or inner % (BLOCK_K * splits):
        raise ValueError(f"N {outputs} and K {inner}: multiples of {block_n} and {BLOCK_K} x {splits} splits")
    _bf16_gemm_many[(outputs // block_n, triton.cdiv(rows, MANY_TILE))](
        x_RK,
        weight_NK,
        out_RN,
        rows,
        N=outputs,
        K=inner,
        SPLITS=splits,
        BLOCK_N=block_n,
        BLOCK_R=MANY_TILE,
        BLOCK_K=BLOCK_K,
        num_warps=MANY_WARPS,
        num_stages=MANY_STAGES,
    )


def bf16_matmul_reference(x_RK: Tensor, weight_NK: Tensor) -> Tensor:
    """fp64 [R, N]"""
    return x_RK.double() @ weight_NK.double().t()


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _bf16_gemm(  # type: ignore[no-untyped-def]
    x_ptr,  # noqa: ANN001
    w_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    N: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    k = tl.arange(0, BLOCK_K)
    inside = r < rows
    w_offset = n[:, None] * K + k[None, :]
    x_offset = r[None, :] * K + k[:, None]
    w_base = w_ptr + split * (K // SPLITS)
    x_base = x_ptr + split * (K // SPLITS)
    total = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    for _ in range(K // SPLITS // BLOCK_K):
        total = tl.dot(
            tl.load(w_base + w_offset), tl.load(x_base + x_offset, mask=inside[None, :], other=0.0), total
        )
        w_base += BLOCK_K
        x_base += BLOCK_K
    at = out_ptr + (split * rows + r[None, :]).to(tl.int64) * N + n[:, None]
    tl.store(at, total, mask=inside[None, :])


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _bf16_gemm_many(  # type: ignore[no-untyped-def]
    x_ptr,  # noqa: ANN001
    w_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    N: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.arange(0, BLOCK_K)
    inside = r < rows
    w_offset = n[:, None] * K + k[None, :]
    x_offset = r[None, :] * K + k[:, None]
    w_base, x_base = w_ptr, x_ptr
    total = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    for _ in range(SPLITS):
        part = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
        for _ in range(K // SPLITS // BLOCK_K):
            x = tl.load(x_base + x_offset, mask=inside[None, :], other=0.0)
            part = tl.dot(tl.load(w_base + w_offset), x, part)
            w_base += BLOCK_K
            x_base += BLOCK_K
        total += part
    tl.store(out_ptr + r[None, :] * N + n[:, None], total, mask=inside[None, :])
