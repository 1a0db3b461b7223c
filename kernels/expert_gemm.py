"""The products of many experts, each over its own rows.

Up: gate and up projection, SwiGLU and the quantisation of the result in one program; it gathers its rows by
itself, so nothing wide is ever sorted. Down: the second projection, a bf16 row per pair, unweighted. Both
read the list of tiles on the device and end where it ends. Knows nothing of how rows were routed.

Letters: R rows  D hidden  F expert width  E experts  P pairs
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels.fp8_rows import Fp8Rows, Fp8Weight, quantize_rows
from kernels.listed_tile import listed_tile
from kernels.quantize import inverse_of, scale_bits_of
from kernels.routes import Routes


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertConfig:
    """How one product is cut: outputs of a program, and tiles in flight."""

    block_n: int
    num_warps: int
    num_stages: int


# By the rows of a tile. Two programs fit a multiprocessor wherever registers and shared memory let them.
UP_CONFIGS = {
    16: ExpertConfig(block_n=128, num_warps=4, num_stages=3),
    32: ExpertConfig(block_n=128, num_warps=4, num_stages=3),
    64: ExpertConfig(block_n=128, num_warps=8, num_stages=3),
}
DOWN_CONFIGS = {
    16: ExpertConfig(block_n=128, num_warps=8, num_stages=3),
    32: ExpertConfig(block_n=128, num_warps=4, num_stages=4),
    64: ExpertConfig(block_n=64, num_warps=4, num_stages=4),
}


def tile_rows_for(rows_per_expert: float) -> int:
    """Of the mean: an expert with more rows than a tile becomes several."""
    return 16 if rows_per_expert <= 8 else 32 if rows_per_expert <= 32 else 64


def expert_up(
    x: Fp8Rows, gate_up: Fp8Weight, routes: Routes, out: Fp8Rows, *, config: ExpertConfig | None = None
) -> None:
    """out[pair] = quantised silu(x[row] @ gate.T) * (x[row] @ up.T), for every pair in the routes.

    gate_up: [E, 2F, D], gate first. out: [P, F]; pairs without an expert keep what they held. Gate and
    up are rounded to bf16.
    """
    check_up(x, gate_up, routes, out)
    experts, both, hidden = gate_up.values_NK.shape
    width = both // 2
    chosen = config or UP_CONFIGS[routes.tile_rows]
    _expert_up[(width // chosen.block_n * routes.max_tiles,)](
        x.values_RK,
        x.scale_GR,
        gate_up.values_NK,
        gate_up.scale_NK,
        out.values_RK,
        out.scale_GR,
        routes.counts,
        routes.tiles,
        routes.pairs_EC,
        x.scale_GR.stride(0),
        out.scale_GR.stride(0),
        routes.capacity,
        routes.shared_tiles,
        E=experts,
        D=hidden,
        F=width,
        PAIRS=routes.pairs_per_row,
        BLOCK_N=chosen.block_n,
        BLOCK_R=routes.tile_rows,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Elsewhere:
    """Where rows go that are not written into one tensor.

    addresses: int64 [B, ...], first in each row the address of what is bf16 [box_pairs, D] for the pairs from
    b * box_pairs on; maybe another GPU's memory.
    """

    addresses: Tensor
    box_pairs: int


def expert_down(
    x: Fp8Rows,
    down: Fp8Weight,
    routes: Routes,
    out_PD: Tensor | Elsewhere,
    *,
    config: ExpertConfig | None = None,
) -> None:
    """out_PD[pair] = x[pair] @ down.T, bf16, for every pair in the routes. down: [E, D, F]."""
    check_down(x, down, routes, out_PD)
    experts, hidden, width = down.values_NK.shape
    box_pairs = address_stride = 0
    out = out_PD
    if isinstance(out_PD, Elsewhere):
        box_pairs, address_stride, out = out_PD.box_pairs, out_PD.addresses.stride(0), out_PD.addresses
    chosen = config or DOWN_CONFIGS[routes.tile_rows]
    _expert_down[(hidden // chosen.block_n * routes.max_tiles,)](
        x.values_RK,
        x.scale_GR,
        down.values_NK,
        down.scale_NK,
        out,
        routes.counts,
        routes.tiles,
        routes.pairs_EC,
        x.scale_GR.stride(0),
        routes.capacity,
        routes.shared_tiles,
        box_pairs,
        E=experts,
        D=hidden,
        F=width,
        BLOCK_N=chosen.block_n,
        BLOCK_R=routes.tile_rows,
        ADDRESS_STRIDE=address_stride,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )


def check_up(x: Fp8Rows, gate_up: Fp8Weight, routes: Routes, out: Fp8Rows) -> None:
    """ValueError unless they are what expert_up takes."""
    x.check("x")
    gate_up.check("gate_up")
    out.check("out")
    experts, both, hidden = gate_up.values_NK.shape
    if x.values_RK.shape[1] != hidden or out.values_RK.shape[1] * 2 != both or experts != routes.num_experts:
        raise ValueError(
            f"x {list(x.values_RK.shape)}, gate_up {list(gate_up.values_NK.shape)} and out "
            f"{list(out.values_RK.shape)} for {routes.num_experts} experts do not belong together"
        )


def check_down(x: Fp8Rows, down: Fp8Weight, routes: Routes, out: Tensor | Elsewhere) -> None:
    """ValueError unless they are what expert_down takes."""
    x.check("x")
    down.check("down")
    experts, hidden, width = down.values_NK.shape
    if x.values_RK.shape[1] != width or experts != routes.num_experts:
        raise ValueError(
            f"x {list(x.values_RK.shape)} and down {list(down.values_NK.shape)} for {routes.num_experts} "
            "experts do not belong together"
        )
    if isinstance(out, Elsewhere):
        return
    if out.shape[1] != hidden or out.dtype != torch.bfloat16 or not out.is_contiguous():
        raise ValueError(f"out is {out.dtype} {list(out.shape)}: expected bf16 [P, {hidden}], dense")


def expert_up_reference(x_RD: Tensor, gate_up_FD: Tensor) -> Tensor:
    """fp64 [R, F] of one expert, before it is quantised."""
    gate, up = (x_RD.double() @ gate_up_FD.double().t()).chunk(2, dim=-1)
    return functional.silu(gate) * up


def experts_reference(x: Fp8Rows, gate_up: Fp8Weight, down: Fp8Weight, experts_RK: Tensor) -> Tensor:
    """fp64 [R, K, D]: every pair alone, with the quantisation between; zero where experts_RK is -1."""
    rows = x.float()
    out = torch.zeros(*experts_RK.shape, down.values_NK.shape[1], dtype=torch.float64, device=rows.device)
    for expert in range(len(gate_up.values_NK)):
        own = experts_RK == expert
        weight = Fp8Weight(gate_up.values_NK[expert], gate_up.scale_NK[expert]).float()
        hidden = quantize_rows(expert_up_reference(rows[own.any(-1)], weight).float()).float().double()
        second = Fp8Weight(down.values_NK[expert], down.scale_NK[expert]).float().double()
        out[own] = hidden @ second.t()
    return out


@triton.jit(do_not_specialize=["capacity", "shared_tiles"])  # type: ignore[untyped-decorator,unused-ignore]
def _expert_up(  # type: ignore[no-untyped-def]
    x_ptr,  # noqa: ANN001
    x_scale_ptr,  # noqa: ANN001
    w_ptr,  # noqa: ANN001
    w_scale_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    out_scale_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    tiles_ptr,  # noqa: ANN001
    pairs_ptr,  # noqa: ANN001
    x_scale_stride,  # noqa: ANN001
    out_scale_stride,  # noqa: ANN001
    capacity,  # noqa: ANN001
    shared_tiles,  # noqa: ANN001
    E: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    TILES: tl.constexpr = F // BLOCK_N
    n_tile = tl.program_id(0) % TILES
    place = tl.program_id(0) // TILES
    if place >= shared_tiles + tl.load(counts_ptr + E):
        return
    expert, pair, inside = listed_tile(tiles_ptr, counts_ptr, pairs_ptr, place, capacity, BLOCK_R)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, GROUP)
    w_offset = n[:, None] * D + k[None, :]
    gate_base = w_ptr + (expert * (2 * F) + n_tile * BLOCK_N).to(tl.int64) * D
    scale_at = w_scale_ptr + (expert * (2 * F // GROUP) + n_tile * BLOCK_N // GROUP) * (D // GROUP)
    row = pair // PAIRS
    x_offset = row[None, :] * D + k[:, None]
    x_base = x_ptr
    x_scale_base = x_scale_ptr
    gate = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    up = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    for _ in range(D // GROUP):
        x = tl.load(x_base + x_offset, mask=inside[None, :], other=0.0)
        gate_w = tl.load(gate_base + w_offset)
        up_w = tl.load(gate_base + F * D + w_offset)
        x_scale = tl.load(x_scale_base + row, mask=inside, other=0.0)
        gate += tl.dot(gate_w, x) * (x_scale * tl.load(scale_at))[None, :]
        up += tl.dot(up_w, x) * (x_scale * tl.load(scale_at + (F // GROUP) * (D // GROUP)))[None, :]
        x_base += GROUP
        gate_base += GROUP
        x_scale_base += x_scale_stride
        scale_at += 1
    # Rounded as kernels/expert_gemm_many.py stores them: a row has the same bits in prefill and in decode.
    gate = gate.to(tl.bfloat16).to(tl.float32)
    hidden = gate / (1.0 + tl.exp(-gate)) * up.to(tl.bfloat16).to(tl.float32)
    bits = scale_bits_of(tl.max(tl.abs(hidden), axis=0))
    values = (hidden * inverse_of(bits)[None, :]).to(tl.float8e4nv)
    at = out_ptr + pair[None, :].to(tl.int64) * F + n_tile * BLOCK_N + n[:, None]
    tl.store(at, values, mask=inside[None, :])
    scale = bits.to(tl.float32, bitcast=True)
    tl.store(out_scale_ptr + n_tile * out_scale_stride + pair, scale, mask=inside)


@triton.jit(do_not_specialize=["capacity", "shared_tiles", "box_pairs"])  # type: ignore[untyped-decorator,unused-ignore]
def _expert_down(  # type: ignore[no-untyped-def]
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
    box_pairs,  # noqa: ANN001
    E: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ADDRESS_STRIDE: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    TILES: tl.constexpr = D // BLOCK_N
    n_tile = tl.program_id(0) % TILES
    place = tl.program_id(0) // TILES
    if place >= shared_tiles + tl.load(counts_ptr + E):
        return
    expert, pair, inside = listed_tile(tiles_ptr, counts_ptr, pairs_ptr, place, capacity, BLOCK_R)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, GROUP)
    w_offset = n[:, None] * F + k[None, :]
    w_base = w_ptr + (expert * D + n_tile * BLOCK_N).to(tl.int64) * F
    scale_at = w_scale_ptr + (expert * (D // GROUP) + n_tile * BLOCK_N // GROUP) * (F // GROUP)
    x_offset = pair[None, :] * F + k[:, None]
    x_base = x_ptr
    x_scale_base = x_scale_ptr
    total = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    for _ in range(F // GROUP):
        x = tl.load(x_base + x_offset, mask=inside[None, :], other=0.0)
        w = tl.load(w_base + w_offset)
        scale = tl.load(x_scale_base + pair, mask=inside, other=0.0) * tl.load(scale_at)
        total += tl.dot(w, x) * scale[None, :]
        x_base += GROUP
        w_base += GROUP
        x_scale_base += x_scale_stride
        scale_at += 1
    if ADDRESS_STRIDE > 0:
        box = pair // box_pairs
        address = tl.load(out_ptr + box * ADDRESS_STRIDE, mask=inside, other=0)
        inside = inside & (address != 0)  # who asked may have been lost since
        address += (pair - box * box_pairs).to(tl.int64) * (D * 2) + n_tile * (BLOCK_N * 2)
        row_at = tl.multiple_of(address, 16).to(tl.pointer_type(tl.bfloat16), bitcast=True)
        at = tl.multiple_of(row_at, 16)[None, :] + n[:, None]
    else:
        at = out_ptr + pair[None, :].to(tl.int64) * D + n_tile * BLOCK_N + n[:, None]
    tl.store(at, total.to(tl.bfloat16), mask=inside[None, :])
