"""The products of many experts over many rows each: prefill.

The rows are the M operand, as in kernels/fp8_gemm_many.py. Launches kernels/many_gluon.py where the device is
one for it, which makes FP8 of gate and up at once; else the kernel below, whose sums go to memory in bf16 for
kernels/swiglu.py: with two of 128 x 128 a program would spill. The bits are the same. Knows nothing of
routing.

Letters: R rows  K inner dimension  N outputs  F expert width  E experts  P pairs
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.expert_gemm import ExpertConfig, check_up
from kernels.fp8_gemm_many import STAGES, blocks_of_tile
from kernels.fp8_rows import Fp8Rows, Fp8Weight
from kernels.hopper import has_gluon, multiprocessors, operand
from kernels.listed_tile import listed_tile
from kernels.routes import Routes
from kernels.swiglu import swiglu_quantize

try:
    from kernels.many_gluon import many_kernel
except ImportError:  # a Triton without Gluon
    many_kernel = None

TILE_ROWS = 128
CONFIG = ExpertConfig(block_n=128, num_warps=8, num_stages=4)


def expert_up_many(x: Fp8Rows, gate_up: Fp8Weight, routes: Routes, out: Fp8Rows) -> None:
    """As kernels.expert_gemm.expert_up, for tiles of TILE_ROWS rows."""
    check_up(x, gate_up, routes, out)
    _check_tiles(routes)
    if has_gluon(x.values_RK.device):
        _launch_gluon(x, gate_up, routes, out.values_RK, out.scale_GR, by_row=True)
        return
    both_PF = x.scale_GR.new_zeros(len(out.values_RK), gate_up.values_NK.shape[1], dtype=torch.bfloat16)
    expert_matmul_many(x, gate_up, routes, both_PF, by_row=True)
    swiglu_quantize(both_PF, out)


def expert_matmul_many(
    x: Fp8Rows,
    weight: Fp8Weight,
    routes: Routes,
    out_PN: Tensor,
    *,
    by_row: bool,
    config: ExpertConfig | None = None,
) -> None:
    """out_PN[pair] = x @ weight[expert].T in bf16 for every pair in the routes. weight: [E, N, K].

    by_row: x has one row per row of the step, and each pair takes its own; otherwise one per pair. config: of
    the kernel below, wherever it runs; by default the quickest that the device has is launched.
    """
    x.check("x")
    weight.check("weight")
    experts, outputs, inner = weight.values_NK.shape
    if x.values_RK.shape[1] != inner or out_PN.shape[1] != outputs or experts != routes.num_experts:
        raise ValueError(
            f"x {list(x.values_RK.shape)}, weight {list(weight.values_NK.shape)} and out "
            f"{list(out_PN.shape)} for {routes.num_experts} experts do not belong together"
        )
    if out_PN.dtype != torch.bfloat16 or not out_PN.is_contiguous():
        raise ValueError(f"out is {out_PN.dtype}: expected bf16, dense")
    _check_tiles(routes)
    if config is None and has_gluon(x.values_RK.device):
        _launch_gluon(x, weight, routes, out_PN, None, by_row=by_row)
        return
    config = config or CONFIG
    _expert_gemm_many[(outputs // config.block_n * routes.max_tiles,)](
        x.values_RK,
        x.scale_GR,
        weight.values_NK,
        weight.scale_NK,
        out_PN,
        routes.counts,
        routes.tiles,
        routes.pairs_EC,
        x.scale_GR.stride(0),
        routes.capacity,
        routes.shared_tiles,
        E=experts,
        N=outputs,
        K=inner,
        PAIRS=routes.pairs_per_row if by_row else 1,
        BLOCK_N=config.block_n,
        BLOCK_R=routes.tile_rows,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _check_tiles(routes: Routes) -> None:
    if routes.tile_rows != TILE_ROWS:
        raise ValueError(f"routes have tiles of {routes.tile_rows} rows: make them with {TILE_ROWS}")


def _launch_gluon(
    x: Fp8Rows, weight: Fp8Weight, routes: Routes, out: Tensor, scale: Tensor | None, *, by_row: bool
) -> None:
    """scale: of out, where that is gate and up in FP8."""
    experts, outputs, inner = weight.values_NK.shape
    blocks = 2 if scale is not None else blocks_of_tile(outputs, splits=1)
    weights = operand(weight.values_NK)
    many_kernel[(multiprocessors(out.device),)](
        x.values_RK,
        weights,  # unused: rows are gathered
        x.scale_GR,
        x.scale_GR.stride(0),
        weights,
        weight.scale_NK,
        out,
        x.scale_GR if scale is None else scale,
        0 if scale is None else scale.stride(0),
        routes.counts,
        routes.tiles,
        routes.pairs_EC,
        len(x.values_RK),
        routes.capacity,
        routes.shared_tiles,
        E=experts,
        N=outputs,
        K=inner,
        SPLITS=1,
        BLOCKS=blocks,
        LISTED=True,
        ACTIVATED=scale is not None,
        PAIRS=routes.pairs_per_row if by_row else 1,
        STAGES=STAGES[blocks],
        num_warps=4,
    )


@triton.jit(do_not_specialize=["capacity", "shared_tiles"])  # type: ignore[untyped-decorator,unused-ignore]
def _expert_gemm_many(  # type: ignore[no-untyped-def]
    x_ptr,  # noqa: ANN001
    x_scale_ptr,  # noqa: ANN001
    w_ptr,  # noqa: ANN001
    w_scale_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    tiles_ptr,  # noqa: ANN001
    pairs_ptr,  # noqa: ANN001
    x_scale_stride,  # noqa: ANN001
    capacity,  # noqa: ANN001
    shared_tiles,  # noqa: ANN001
    E: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    TILES: tl.constexpr = N // BLOCK_N
    n_tile = tl.program_id(0) % TILES
    place = tl.program_id(0) // TILES
    if place >= shared_tiles + tl.load(counts_ptr + E):
        return
    expert, pair, inside = listed_tile(tiles_ptr, counts_ptr, pairs_ptr, place, capacity, BLOCK_R)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, GROUP)
    w_offset = n[None, :] * K + k[:, None]
    w_base = w_ptr + (expert * N + n_tile * BLOCK_N).to(tl.int64) * K
    scale_at = w_scale_ptr + (expert * (N // GROUP) + n_tile * BLOCK_N // GROUP) * (K // GROUP)
    row = pair // PAIRS
    x_offset = row[:, None] * K + k[None, :]
    x_base = x_ptr
    x_scale_at = x_scale_ptr + row
    total = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for _ in range(K // GROUP):
        x = tl.load(x_base + x_offset, mask=inside[:, None], other=0.0)
        w = tl.load(w_base + w_offset)
        scale = tl.load(x_scale_at, mask=inside, other=0.0) * tl.load(scale_at)
        total += tl.dot(x, w) * scale[:, None]
        x_base += GROUP
        w_base += GROUP
        x_scale_at += x_scale_stride
        scale_at += 1
    at = out_ptr + pair[:, None].to(tl.int64) * N + n_tile * BLOCK_N + n[None, :]
    tl.store(at, total.to(tl.bfloat16), mask=inside[:, None])
