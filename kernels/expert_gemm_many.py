"""One product of many experts over many rows each: prefill.

The rows are the M operand, as in kernels/fp8_gemm_many.py. The up projection's result goes to memory in bf16
and kernels/swiglu.py makes FP8 of it: with two sums of 128 x 128 a program would spill. Knows nothing of
routing.

Letters: R rows  K inner dimension  N outputs  E experts  P pairs
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.expert_gemm import ExpertConfig
from kernels.fp8_rows import Fp8Rows, Fp8Weight
from kernels.listed_tile import listed_tile
from kernels.routes import Routes

TILE_ROWS = 128
CONFIG = ExpertConfig(block_n=128, num_warps=8, num_stages=4)


def expert_matmul_many(
    x: Fp8Rows,
    weight: Fp8Weight,
    routes: Routes,
    out_PN: Tensor,
    *,
    by_row: bool,
    config: ExpertConfig = CONFIG,
) -> None:
    """out_PN[pair] = x @ weight[expert].T in bf16 for every pair in the routes. weight: [E, N, K].

    by_row: x has one row per row of the step, and each pair takes its own; otherwise one per pair.
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
