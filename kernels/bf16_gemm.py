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
