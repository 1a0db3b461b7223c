"""Few FP8 rows times a block-scaled FP8 weight.

The weight is the M operand of the matrix unit and the rows are its N operand, so that few rows still use
Hopper's FP8 wgmma (with the rows as M it needs 64 of them). Narrow outputs split K over programs; the parts
are added, in order, by whoever reads them. How K is split depends on the weight alone, so a row's bits do not
depend on how many rows share the call. Launches kernels/few_gluon.py where that is quicker, else the kernel
below, whose bits are the same. Knows nothing of layers.

Letters: R rows  K inner dimension  N outputs  S splits of K
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_rows import GROUP, Fp8Rows, Fp8Weight
from kernels.hopper import has_gluon, multiprocessors, operand

try:
    from kernels.few_gluon import few_kernel
except ImportError:  # a Triton without Gluon
    few_kernel = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GemmConfig:
    """How one call is cut. block_n and block_r: a program's tile; stages: tiles in flight."""

    block_n: int
    block_r: int
    num_warps: int
    num_stages: int


# By the most rows of a call. Memory-bound: many bytes in flight; kernels/fp8_gemm_many.py takes prefill.
CONFIGS: tuple[tuple[int, GemmConfig], ...] = (
    (16, GemmConfig(block_n=64, block_r=16, num_warps=4, num_stages=4)),
    (32, GemmConfig(block_n=128, block_r=32, num_warps=4, num_stages=4)),
    (64, GemmConfig(block_n=128, block_r=64, num_warps=8, num_stages=4)),
    (1 << 30, GemmConfig(block_n=128, block_r=64, num_warps=4, num_stages=4)),
)

STAGES = {16: 12, 64: 9, 128: 6}  # of the other kernel, by the rows of a tile


def config_for(num_rows: int) -> GemmConfig:
    return next(config for most, config in CONFIGS if num_rows <= most)


def gluon_is_quicker(num_rows: int) -> bool:
    """As measured: many small programs of the kernel below are ahead at one row, and level at 32."""
    return 8 < num_rows <= 16 or num_rows > 32


def splits_for(num_outputs: int, inner: int) -> int:
    """Into how many parts K is cut: enough programs for 132 multiprocessors twice over, in whole groups."""
    tiles, groups = num_outputs // GROUP, inner // GROUP
    fitting = [s for s in range(1, groups + 1) if groups % s == 0 and groups // s >= MIN_GROUPS]
    return next((s for s in fitting if s * tiles >= ENOUGH_PROGRAMS), fitting[-1] if fitting else 1)


ENOUGH_PROGRAMS = 200
MIN_GROUPS = 8  # of a split: less is all prologue


def fp8_matmul(x: Fp8Rows, weight: Fp8Weight, out: Tensor, *, config: GemmConfig | None = None) -> None:
    """out = x @ weight.T.

    out: bf16 [R, N], or fp32 [S, R, N] for the S parts of the sum, S a divisor of K / GROUP. Raises
    ValueError for other shapes and dtypes. config: of the kernel below, wherever it runs; by default the
    quickest that the device has is launched.
    """
    x.check("x")
    weight.check("weight")
    (rows, inner), outputs = x.values_RK.shape, weight.values_NK.shape[0]
    splits = out.shape[0] if out.dim() == 3 else 1
    if weight.values_NK.shape[1] != inner or out.shape[-2:] != (rows, outputs) or not out.is_contiguous():
        raise ValueError(
            f"x {list(x.values_RK.shape)} times weight {list(weight.values_NK.shape)} does not make "
            f"out {list(out.shape)}"
        )
    if out.dtype != (torch.float32 if out.dim() == 3 else torch.bfloat16) or inner // GROUP % splits:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}: expected bf16 [R, N] or fp32 [S, R, N]")
    if config is None and gluon_is_quicker(rows) and has_gluon(x.values_RK.device):
        _launch_gluon(x, weight, out, splits)
        return
    chosen = config or config_for(rows)
    grid = (triton.cdiv(rows, chosen.block_r) * (outputs // chosen.block_n), splits)
    _fp8_gemm[grid](
        x.values_RK,
        x.scale_GR,
        weight.values_NK,
        weight.scale_NK,
        out,
        rows,
        x.scale_GR.stride(0),
        N=outputs,
        K=inner,
        SPLITS=splits,
        BLOCK_N=chosen.block_n,
        BLOCK_R=chosen.block_r,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )


def _launch_gluon(x: Fp8Rows, weight: Fp8Weight, out: Tensor, splits: int) -> None:
    rows = len(x.values_RK)
    tile = next((tile for tile in STAGES if rows <= tile), max(STAGES))
    outputs, inner = weight.values_NK.shape
    few_kernel[(multiprocessors(out.device),)](
        operand(x.values_RK, rows=tile),
        x.scale_GR,
        x.scale_GR.stride(0),
        operand(weight.values_NK),
        weight.scale_NK,
        out,
        rows,
        N=outputs,
        K=inner,
        SPLITS=splits,
        BLOCK_R=tile,
        STAGES=STAGES[tile],
        num_warps=4,
    )


def fp8_matmul_reference(x: Fp8Rows, weight: Fp8Weight) -> Tensor:
    """fp64 [R, N]: what the values stand for, multiplied."""
    return x.float().double() @ weight.float().double().t()


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _fp8_gemm(  # type: ignore[no-untyped-def]
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
    # Programs that share a tile of the weight are neighbours: the second finds it in the L2 cache.
    row_tile = tl.program_id(0) % row_tiles
    n_tile = tl.program_id(0) // row_tiles
    split = tl.program_id(1)
    # A scalar base that moves and offsets that do not: pointers of whole tiles would fill the registers.
    first = split * GROUPS
    w_base = w_ptr + (n_tile * BLOCK_N).to(tl.int64) * K + first * GROUP
    x_base = x_ptr + first * GROUP
    w_scale_at = w_scale_ptr + (n_tile * BLOCK_N // GROUP) * (K // GROUP) + first
    x_scale_base = x_scale_ptr + first * x_scale_stride
    n = tl.arange(0, BLOCK_N)
    r = row_tile * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.arange(0, GROUP)
    inside = r < rows
    w_offset = n[:, None] * K + k[None, :]
    x_offset = r[None, :] * K + k[:, None]
    total = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    for _ in range(GROUPS):
        w = tl.load(w_base + w_offset)
        x = tl.load(x_base + x_offset, mask=inside[None, :], other=0.0)
        scale = tl.load(x_scale_base + r, mask=inside, other=0.0) * tl.load(w_scale_at)
        total += tl.dot(w, x) * scale[None, :]
        w_base += GROUP
        x_base += GROUP
        w_scale_at += 1
        x_scale_base += x_scale_stride
    n += n_tile * BLOCK_N
    out_at = out_ptr + (split * rows + r[None, :]).to(tl.int64) * N + n[:, None]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=inside[None, :])
