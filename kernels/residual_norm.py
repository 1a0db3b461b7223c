"""Residual sum, RMSNorm and FP8 rows in one pass.

What came back from attention (parts of a split product) or from the experts (a row per pair) is added to the
residual; the sum is normalised and quantised for the next product. Knows nothing of which layer it stands in.

Letters: R rows  D hidden  S splits  P pairs  K experts per row
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_rows import Fp8Rows
from kernels.quantize import inverse_of, scale_bits_of

NUM_WARPS = 32  # eight values a thread: all parts in flight at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighted:
    """Rows of experts to be added: pairs_PD bf16 [R * places, D], P = row * places + k.

    weights_RK: fp32 [R, K]; places after the first K (the shared expert's) weigh 1. lanes_RP: int32, in which
    part of pairs_PD (lane_pairs of it each) a place's row stands, where there are several.
    """

    pairs_PD: Tensor
    weights_RK: Tensor
    places: int
    lanes_RP: Tensor | None = None
    lane_pairs: int = 0


def residual_norm(
    residual_RD: Tensor,
    delta: Tensor | Weighted | None,
    weight_D: Tensor,
    eps: float,
    out_RD: Tensor,
    out: Fp8Rows,
) -> None:
    """residual += delta, in place; out_RD (bf16) and out (FP8) = RMSNorm(residual).

    residual_RD: bf16. delta: fp32 parts [S, R, D], added in order; or rows of experts; or nothing. Sums and
    norm are fp32, rounded once each.
    """
    rows, width = residual_RD.shape
    if residual_RD.dtype != torch.bfloat16 or weight_D.shape != (width,) or out_RD.shape != (rows, width):
        raise ValueError(
            f"residual is {residual_RD.dtype} {list(residual_RD.shape)}, weight {list(weight_D.shape)}, out "
            f"{list(out_RD.shape)}: expected bf16 [R, D], [D], [R, D]"
        )
    parts, places, experts, lane_pairs = 0, 0, 0, 0
    first = second = third = weight_D  # stands in for what a mode does not read
    if isinstance(delta, Weighted):
        first, second = delta.pairs_PD, delta.weights_RK
        places, experts = delta.places, delta.weights_RK.shape[1]
        if delta.lanes_RP is not None:
            third, lane_pairs = delta.lanes_RP, delta.lane_pairs
    elif delta is not None:
        first, parts = delta, delta.shape[0]
    _residual_norm[(rows,)](
        residual_RD,
        first,
        second,
        third,
        weight_D,
        out_RD,
        out.values_RK,
        out.scale_GR,
        eps,
        rows,
        out.scale_GR.stride(0),
        lane_pairs,
        D=width,
        BLOCK_D=triton.next_power_of_2(width),
        PARTS=parts,
        PLACES=places,
        EXPERTS=experts,
        LANES=lane_pairs > 0,
        num_warps=NUM_WARPS,
    )


def residual_norm_reference(
    residual_RD: Tensor, delta: Tensor | Weighted | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(the new residual in bf16, its norm in fp64)."""
    total = residual_RD.double()
    if isinstance(delta, Weighted):
        rows = delta.pairs_PD.double()
        if delta.lanes_RP is not None:
            own = torch.arange(delta.lanes_RP.numel(), device=rows.device)
            rows = rows[delta.lanes_RP.reshape(-1).long() * delta.lane_pairs + own]
        rows = rows.view(len(total), delta.places, -1)
        ones = rows.new_ones(len(total), delta.places - delta.weights_RK.shape[1])
        total = total + (rows * torch.cat([delta.weights_RK.double(), ones], 1)[..., None]).sum(1)
    elif delta is not None:
        total = total + delta.double().sum(0)
    rounded = total.to(torch.bfloat16)
    values = rounded.double()
    return rounded, values * (values.square().mean(-1, keepdim=True) + eps).rsqrt() * weight_D.double()


@triton.jit(do_not_specialize=["rows", "lane_pairs"])  # type: ignore[untyped-decorator,unused-ignore]
def _residual_norm(  # type: ignore[no-untyped-def]
    residual_ptr,  # noqa: ANN001
    delta_ptr,  # noqa: ANN001
    route_weight_ptr,  # noqa: ANN001
    lanes_ptr,  # noqa: ANN001
    weight_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    values_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    eps,  # noqa: ANN001
    rows,  # noqa: ANN001
    scale_stride,  # noqa: ANN001
    lane_pairs,  # noqa: ANN001
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    PLACES: tl.constexpr,
    EXPERTS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    row = tl.program_id(0)
    # Shaped by groups from the start, so that their maxima need no exchange between layouts.
    group = tl.arange(0, BLOCK_D // GROUP)[:, None]
    d = group * GROUP + tl.arange(0, GROUP)[None, :]
    inside = d < D
    at = row.to(tl.int64) * D + d
    total = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if PARTS > 0:
        delta = tl.zeros_like(total)
        for part in tl.static_range(PARTS):
            delta += tl.load(delta_ptr + (part * rows).to(tl.int64) * D + at, mask=inside, other=0.0)
        total += delta
    if PLACES > 0:
        delta = tl.zeros_like(total)
        for place in tl.static_range(PLACES):
            pair = (row * PLACES + place).to(tl.int64)
            if LANES:
                pair += tl.load(lanes_ptr + row * PLACES + place).to(tl.int64) * lane_pairs
            pair_at = delta_ptr + pair * D + d
            value = tl.load(pair_at, mask=inside, other=0.0).to(tl.float32)
            if place < EXPERTS:
                value *= tl.load(route_weight_ptr + row * EXPERTS + place)
            delta += value
        total += delta
    rounded = total.to(tl.bfloat16)
    if PARTS + PLACES > 0:
        tl.store(residual_ptr + at, rounded, mask=inside)
    total = rounded.to(tl.float32)
    mean = tl.sum(tl.sum(total * total, axis=1), axis=0) / D
    weight = tl.load(weight_ptr + d, mask=inside, other=0.0)
    normed = (total * tl.rsqrt(mean + eps) * weight).to(tl.bfloat16)
    tl.store(out_ptr + at, normed, mask=inside)
    value = normed.to(tl.float32)
    bits = scale_bits_of(tl.max(tl.abs(value), axis=1, keep_dims=True))
    tl.store(values_ptr + at, (value * inverse_of(bits)).to(tl.float8e4nv), mask=inside)
    scale = bits.to(tl.float32, bitcast=True)
    tl.store(scale_ptr + group * scale_stride + row, scale, mask=group * GROUP < D)
