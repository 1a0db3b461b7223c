"""Queries into latent space and values out of it, by the FP8 weight of the key-value up projection.

`kv_b_proj` as released holds, head by head, 128 rows that make keys and 128 that make values. Absorbed, the
first carry a query to the latents (W_UK), the second carry what was gathered back (W_UV). FP8 values are
exact in bf16, so blocks are multiplied as they are and scaled after. Knows nothing of attention itself.

Letters: R rows  N heads  P nope dims = V value dims = 128  C latent  T rotary pairs  X columns of the queries
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_rows import GROUP, Fp8Rows, Fp8Weight
from kernels.quantize import inverse_of, scale_bits_of

NUM_WARPS = 8
NUM_STAGES = 3
MOST_ROWS_OF_A_TILE = 64


def absorb_query(
    up_RX: Tensor, kv_b: Fp8Weight, cos_TP: Tensor, sin_TP: Tensor, positions_R: Tensor, out_RNC: Tensor
) -> None:
    """out_RNC (fp16 [R, N, C + 2T]) = [q_nope @ W_UK | turned q_rotary] of every head.

    up_RX: bf16, head n's query at columns n * (128 + 2T). Rotary pairs are half-split.
    """
    rows, heads, width = out_RNC.shape
    latent, rotary = kv_b.values_NK.shape[1], 2 * cos_TP.shape[1]
    if width != latent + rotary or kv_b.values_NK.shape[0] != heads * 2 * GROUP:
        raise ValueError(f"out is {list(out_RNC.shape)}, kv_b {list(kv_b.values_NK.shape)}: not one model's")
    if up_RX.dtype != torch.bfloat16 or out_RNC.dtype != torch.float16:
        raise ValueError(f"up is {up_RX.dtype}, out {out_RNC.dtype}: expected bf16 and fp16")
    block_r = _row_tile(rows)
    _absorb_query[(heads, latent // GROUP + 1, triton.cdiv(rows, block_r))](
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
        BLOCK_R=block_r,
        num_warps=NUM_WARPS,
    )


def absorb_value(latent_RNC: Tensor, kv_b: Fp8Weight, out: Fp8Rows) -> None:
    """out = latent @ W_UV of every head, quantised: [R, N * 128], a group a head. latent_RNC: bf16."""
    rows, heads, latent = latent_RNC.shape
    if latent_RNC.dtype != torch.bfloat16 or kv_b.values_NK.shape != (heads * 2 * GROUP, latent):
        raise ValueError(
            f"latent is {latent_RNC.dtype} {list(latent_RNC.shape)}, kv_b "
            f"{list(kv_b.values_NK.shape)}: not one model's"
        )
    out.check("out")
    block_r = _row_tile(rows)
    _absorb_value[(heads, triton.cdiv(rows, block_r))](
        latent_RNC,
        kv_b.values_NK,
        kv_b.scale_NK,
        out.values_RK,
        out.scale_GR,
        rows,
        out.scale_GR.stride(0),
        N=heads,
        C=latent,
        BLOCK_R=block_r,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )


def absorb_query_reference(query_RNP: Tensor, kv_b: Fp8Weight) -> Tensor:
    """fp64 [R, N, C]"""
    weight_NPC = kv_b.float().double().view(query_RNP.shape[1], 2, GROUP, -1)[:, 0]
    return torch.einsum("rnp,npc->rnc", query_RNP.double(), weight_NPC)


def absorb_value_reference(latent_RNC: Tensor, kv_b: Fp8Weight) -> Tensor:
    """fp64 [R, N * 128] before it is quantised."""
    weight_NVC = kv_b.float().double().view(latent_RNC.shape[1], 2, GROUP, -1)[:, 1]
    return torch.einsum("rnc,nvc->rnv", latent_RNC.double(), weight_NVC).flatten(1)


def _row_tile(rows: int) -> int:
    return min(MOST_ROWS_OF_A_TILE, max(16, int(triton.next_power_of_2(rows))))


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _absorb_query(  # type: ignore[no-untyped-def]
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
    chunk = tl.program_id(1)
    r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (r < rows)[None, :]
    out_at = out_ptr + (r[None, :] * N + head).to(tl.int64) * (C + 2 * T)
    query_at = up_ptr + r[None, :].to(tl.int64) * X + head * (GROUP + 2 * T)
    if chunk < C // GROUP:
        # The weight is the M operand, so that few rows meet the same instruction as many.
        p = tl.arange(0, GROUP)
        query = tl.load(query_at + p[:, None], mask=inside, other=0.0)
        w_at = w_ptr + (head * (2 * GROUP) + p[None, :]) * C + chunk * GROUP + p[:, None]
        carried = tl.dot(tl.load(w_at).to(tl.bfloat16), query)
        carried *= tl.load(w_scale_ptr + head * 2 * (C // GROUP) + chunk)
        tl.store(out_at + chunk * GROUP + p[:, None], carried.to(tl.float16), mask=inside)
    else:
        t = tl.arange(0, T)
        position = tl.load(positions_ptr + r, mask=r < rows, other=0)[None, :]
        cos = tl.load(cos_ptr + position * T + t[:, None])
        sin = tl.load(sin_ptr + position * T + t[:, None])
        first = tl.load(query_at + GROUP + t[:, None], mask=inside, other=0.0).to(tl.float32)
        second = tl.load(query_at + GROUP + T + t[:, None], mask=inside, other=0.0).to(tl.float32)
        tl.store(out_at + C + t[:, None], (first * cos - second * sin).to(tl.float16), mask=inside)
        tl.store(out_at + C + T + t[:, None], (second * cos + first * sin).to(tl.float16), mask=inside)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _absorb_value(  # type: ignore[no-untyped-def]
    latent_ptr,  # noqa: ANN001
    w_ptr,  # noqa: ANN001
    w_scale_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    out_scale_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    out_scale_stride,  # noqa: ANN001
    N: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    head = tl.program_id(0)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = (r < rows)[None, :]
    v = tl.arange(0, GROUP)
    # The weight is the M operand: it goes from FP8 to the matrix unit through registers alone.
    w_at = w_ptr + (head * (2 * GROUP) + GROUP + v[:, None]) * C + v[None, :]
    latent_at = latent_ptr + (r[None, :] * N + head).to(tl.int64) * C + v[:, None]
    scale_at = w_scale_ptr + (head * 2 + 1) * (C // GROUP)
    total = tl.zeros([GROUP, BLOCK_R], tl.float32)
    for chunk in range(C // GROUP):
        w = tl.load(w_at + chunk * GROUP).to(tl.bfloat16)
        latent = tl.load(latent_at + chunk * GROUP, mask=inside, other=0.0)
        total += tl.dot(w, latent) * tl.load(scale_at + chunk)
    bits = scale_bits_of(tl.max(tl.abs(total), axis=0))
    values = (total * inverse_of(bits)[None, :]).to(tl.float8e4nv)
    out_at = out_ptr + r[None, :].to(tl.int64) * (N * GROUP) + head * GROUP + v[:, None]
    tl.store(out_at, values, mask=inside)
    tl.store(out_scale_ptr + head * out_scale_stride + r, bits.to(tl.float32, bitcast=True), mask=r < rows)
