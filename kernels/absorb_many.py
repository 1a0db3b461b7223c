"""The absorbed projections of kernels/absorb.py for many rows.

A program keeps its rows' queries while it goes through the latent dims, and adds up the shares that attention
left before it carries them to values; the same sums in the same order. Knows nothing of attention itself.

Letters: R rows  N heads  K shares  C latent  T rotary pairs  X columns of the queries  V value dims = 128
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_rows import GROUP, Fp8Rows, Fp8Weight
from kernels.quantize import inverse_of, scale_bits_of
from kernels.sparse_mla_prefill import Shares


@dataclass(frozen=True, kw_only=True, slots=True)
class AbsorbConfig:
    """Rows of a program and tiles in flight."""

    block_r: int
    num_warps: int
    num_stages: int


QUERY = AbsorbConfig(block_r=128, num_warps=8, num_stages=1)
VALUE = AbsorbConfig(block_r=128, num_warps=8, num_stages=3)
VALUE_OF_SHARES = AbsorbConfig(block_r=128, num_warps=8, num_stages=1)  # they come through registers


def absorb_query_many(
    up_RX: Tensor,
    kv_b: Fp8Weight,
    cos_TP: Tensor,
    sin_TP: Tensor,
    positions_R: Tensor,
    out_RNC: Tensor,
    *,
    config: AbsorbConfig = QUERY,
) -> None:
    """What absorb_query does."""
    rows, heads, width = out_RNC.shape
    latent, rotary = kv_b.values_NK.shape[1], 2 * cos_TP.shape[1]
    if width != latent + rotary or kv_b.values_NK.shape[0] != heads * 2 * GROUP:
        raise ValueError(f"out is {list(out_RNC.shape)}, kv_b {list(kv_b.values_NK.shape)}: not one model's")
    if up_RX.dtype != torch.bfloat16 or out_RNC.dtype != torch.float16:
        raise ValueError(f"up is {up_RX.dtype}, out {out_RNC.dtype}: expected bf16 and fp16")
    _absorb_query_many[(heads, triton.cdiv(rows, config.block_r))](
        up_RX,
        kv_b.values_NK,
        kv_b.scale_NK,
        cos_TP,
        sin_TP,
        positions_R,
        out_RNC,
        rows,
        X=up_RX.shape[1],
        N=heads,
        C=latent,
        T=rotary // 2,
        BLOCK_R=config.block_r,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def absorb_value_many(
    shares: Shares, kv_b: Fp8Weight, out: Fp8Rows, *, config: AbsorbConfig | None = None
) -> None:
    """What absorb_value does with the shares when they are combined."""
    rows, splits, heads, latent = shares.partial_TKNC.shape
    if kv_b.values_NK.shape != (heads * 2 * GROUP, latent) or out.values_RK.shape != (rows, heads * GROUP):
        raise ValueError(
            f"shares are {list(shares.partial_TKNC.shape)}, kv_b {list(kv_b.values_NK.shape)}, out "
            f"{list(out.values_RK.shape)}: not one model's"
        )
    out.check("out")
    chosen = config or (VALUE if splits == 1 else VALUE_OF_SHARES)
    _absorb_value_many[(heads, triton.cdiv(rows, chosen.block_r))](
        shares.partial_TKNC,
        shares.lse_TKN,
        kv_b.values_NK,
        kv_b.scale_NK,
        out.values_RK,
        out.scale_GR,
        rows,
        out.scale_GR.stride(0),
        N=heads,
        C=latent,
        SPLITS=splits,
        BLOCK_R=chosen.block_r,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _absorb_query_many(  # type: ignore[no-untyped-def]
    up_ptr,  # noqa: ANN001
    w_ptr,  # noqa: ANN001
    w_scale_ptr,  # noqa: ANN001
    cos_ptr,  # noqa: ANN001
    sin_ptr,  # noqa: ANN001
    positions_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    X: tl.constexpr,
    N: tl.constexpr,
    C: tl.constexpr,
    T: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    head = tl.program_id(0)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (r < rows)[:, None]
    p = tl.arange(0, GROUP)
    t = tl.arange(0, T)[None, :]
    out_at = out_ptr + (r[:, None] * N + head).to(tl.int64) * (C + 2 * T)
    query_at = up_ptr + r[:, None].to(tl.int64) * X + head * (GROUP + 2 * T)
    query = tl.load(query_at + p[None, :], mask=inside, other=0.0)
    w_at = w_ptr + head * (2 * GROUP * C) + p[:, None] * C + p[None, :]
    for chunk in tl.static_range(C // GROUP):
        carried = tl.dot(query, tl.load(w_at + chunk * GROUP).to(tl.bfloat16))
        carried *= tl.load(w_scale_ptr + head * 2 * (C // GROUP) + chunk)
        tl.store(out_at + chunk * GROUP + p[None, :], carried.to(tl.float16), mask=inside)
    position = tl.load(positions_ptr + r, mask=r < rows, other=0)[:, None]
    cos = tl.load(cos_ptr + position * T + t)
    sin = tl.load(sin_ptr + position * T + t)
    first = tl.load(query_at + GROUP + t, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(query_at + GROUP + T + t, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_at + C + t, (first * cos - second * sin).to(tl.float16), mask=inside)
    tl.store(out_at + C + T + t, (second * cos + first * sin).to(tl.float16), mask=inside)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _absorb_value_many(  # type: ignore[no-untyped-def]
    partial_ptr,  # noqa: ANN001
    lse_ptr,  # noqa: ANN001
    w_ptr,  # noqa: ANN001
    w_scale_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    out_scale_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    out_scale_stride,  # noqa: ANN001
    N: tl.constexpr,
    C: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    head = tl.program_id(0)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = r < rows
    v = tl.arange(0, GROUP)
    w_at = w_ptr + (head * (2 * GROUP) + GROUP + v[None, :]) * C + v[:, None]
    scale_at = w_scale_ptr + (head * 2 + 1) * (C // GROUP)
    row_at = r.to(tl.int64) * (SPLITS * N) + head
    top = tl.full([BLOCK_R], float("-inf"), tl.float32)
    weights = tl.zeros([BLOCK_R], tl.float32)
    if SPLITS > 1:
        for split in tl.static_range(SPLITS):
            lse = tl.load(lse_ptr + row_at + split * N, mask=inside, other=float("-inf"))
            top = tl.maximum(top, lse)
        top = tl.where(top == float("-inf"), 0.0, top)
        for split in tl.static_range(SPLITS):
            lse = tl.load(lse_ptr + row_at + split * N, mask=inside, other=float("-inf"))
            weights += tl.exp2(lse - top)
    over = 1.0 / tl.where(weights > 0, weights, 1.0)
    total = tl.zeros([BLOCK_R, GROUP], tl.float32)
    for chunk in range(C // GROUP):
        latent_at = partial_ptr + row_at[:, None] * C + chunk * GROUP + v[None, :]
        if SPLITS > 1:  # in the order of kernels/sparse_mla.py's combine_kernel
            sums = tl.zeros([BLOCK_R, GROUP], tl.float32)
            for split in tl.static_range(SPLITS):
                lse = tl.load(lse_ptr + row_at + split * N, mask=inside, other=float("-inf"))
                weight = tl.exp2(lse - top)
                part = tl.load(latent_at + split * N * C, mask=(weight > 0)[:, None], other=0.0)
                sums += part.to(tl.float32) * weight[:, None]
            latent = (sums * over[:, None]).to(tl.bfloat16)
        else:
            latent = tl.load(latent_at, mask=inside[:, None], other=0.0)
        w = tl.load(w_at + chunk * GROUP).to(tl.bfloat16)
        total += tl.dot(latent, w) * tl.load(scale_at + chunk)
    bits = scale_bits_of(tl.max(tl.abs(total), axis=1))
    values = (total * inverse_of(bits)[:, None]).to(tl.float8e4nv)
    out_at = out_ptr + r[:, None].to(tl.int64) * (N * GROUP) + head * GROUP + v[None, :]
    tl.store(out_at, values, mask=inside[:, None])
    tl.store(out_scale_ptr + head * out_scale_stride + r, bits.to(tl.float32, bitcast=True), mask=inside)
