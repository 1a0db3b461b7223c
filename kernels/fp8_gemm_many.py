"""Many FP8 rows times a block-scaled FP8 weight: prefill.

The rows are the M operand, so that their scales lie along it: a thread holds two rows and multiplies each by
one number. K is cut as kernels/fp8_gemm.py cuts it for few rows, by one program and in the same order, so a
row has the same bits in prefill and in decode. Launches kernels/many_gluon.py where the device is one for it,
else the kernel below, whose bits are the same. Knows nothing of layers.

Letters: R rows  K inner dimension  N outputs  S splits of K
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_gemm import GemmConfig
from kernels.fp8_rows import GROUP, Fp8Rows, Fp8Weight
from kernels.hopper import has_gluon, multiprocessors, operand

try:
    from kernels.many_gluon import many_kernel
except ImportError:  # a Triton without Gluon
    many_kernel = None

CONFIG = GemmConfig(block_n=128, block_r=128, num_warps=8, num_stages=4)


STAGES = {1: 5, 2: 4}  # of the other kernel, by the blocks of outputs of a tile


def fp8_matmul_many(
    x: Fp8Rows, weight: Fp8Weight, out_RN: Tensor, *, splits: int = 1, config: GemmConfig | None = None
) -> None:
    """out_RN = x @ weight.T, bf16 or fp32; sums of `splits` parts of K are added in order.

    config: of the kernel below, wherever it runs; by default the quickest that the device has is launched.
    """
    x.check("x")
    weight.check("weight")
    (rows, inner), outputs = x.values_RK.shape, weight.values_NK.shape[0]
    if weight.values_NK.shape[1] != inner or out_RN.shape != (rows, outputs) or not out_RN.is_contiguous():
        raise ValueError(
            f"x {list(x.values_RK.shape)} times weight {list(weight.values_NK.shape)} does not make "
            f"out {list(out_RN.shape)}"
        )
    if out_RN.dtype not in (torch.float32, torch.bfloat16) or inner // GROUP % splits:
        raise ValueError(
            f"out is {out_RN.dtype} and K {inner} in {splits} splits: fp32 or bf16, whole groups"
        )
    if config is None and has_gluon(x.values_RK.device):
        if rows:
            _launch_gluon(x, weight, out_RN, splits)
        return
    config = config or CONFIG
    grid = (triton.cdiv(rows, config.block_r) * (outputs // config.block_n),)
    _fp8_gemm_many[grid](
        x.values_RK,
        x.scale_GR,
        weight.values_NK,
        weight.scale_NK,
        out_RN,
        rows,
        x.scale_GR.stride(0),
        N=outputs,
        K=inner,
        SPLITS=splits,
        BLOCK_N=config.block_n,
        BLOCK_R=config.block_r,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _launch_gluon(x: Fp8Rows, weight: Fp8Weight, out_RN: Tensor, splits: int) -> None:
    (rows, inner), outputs = x.values_RK.shape, weight.values_NK.shape[0]
    blocks = blocks_of_tile(outputs, splits)
    unused = weight.scale_NK  # lists of experts' rows, and what is written beside the values: not here
    many_kernel[(multiprocessors(out_RN.device),)](
        x.values_RK,
        operand(x.values_RK),
        x.scale_GR,
        x.scale_GR.stride(0),
        operand(weight.values_NK),
        weight.scale_NK,
        out_RN,
        unused,
        0,
        unused,
        unused,
        unused,
        rows,
        0,
        0,
        E=1,
        N=outputs,
        K=inner,
        SPLITS=splits,
        BLOCKS=blocks,
        LISTED=False,
        ACTIVATED=False,
        PAIRS=1,
        STAGES=STAGES[blocks],
        num_warps=4,
    )


def blocks_of_tile(outputs: int, splits: int) -> int:
    """Of 128 outputs: two, where those divide them and no sum of several splits needs the registers."""
    return 2 if splits == 1 and outputs % (2 * GROUP) == 0 else 1


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _fp8_gemm_many(  # type: ignore[no-untyped-def]
    x_ptr,  # noqa: ANN001
    x_scale_ptr,  # noqa: ANN001
    w_ptr,  # noqa: ANN001
    w_scale_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    x_scale_stride,  # noqa: ANN001
    N: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    GROUPS: tl.constexpr = K // GROUP // SPLITS
    row_tiles = tl.cdiv(rows, BLOCK_R)
    row_tile = tl.program_id(0) % row_tiles
    n_tile = tl.program_id(0) // row_tiles
    w_base = w_ptr + (n_tile * BLOCK_N).to(tl.int64) * K
    x_base = x_ptr
    w_scale_at = w_scale_ptr + (n_tile * BLOCK_N // GROUP) * (K // GROUP)
    n = tl.arange(0, BLOCK_N)
    r = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.arange(0, GROUP)
    inside = r < rows
    x_scale_at = x_scale_ptr + r
    w_offset = n[None, :] * K + k[:, None]
    x_offset = r[:, None] * K + k[None, :]
    total = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for _ in range(SPLITS):
        part = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
        for _ in range(GROUPS):
            x = tl.load(x_base + x_offset, mask=inside[:, None], other=0.0)
            w = tl.load(w_base + w_offset)
            scale = tl.load(x_scale_at, mask=inside, other=0.0) * tl.load(w_scale_at)
            part += tl.dot(x, w) * scale[:, None]
            w_base += GROUP
            x_base += GROUP
            w_scale_at += 1
            x_scale_at += x_scale_stride
        total += part
    out_at = out_ptr + r[:, None].to(tl.int64) * N + n_tile * BLOCK_N + n[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside[:, None])
