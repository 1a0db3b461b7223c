"""Queries of many rows into latent space.

What kernels/absorb.py does for few: a program keeps its rows' queries while it goes through the latent dims,
and a row has the same bits. Values out of latent space gain nothing by more rows: absorb_value takes those,
too. Knows nothing of attention itself.

Letters: R rows  N heads  P nope dims = 128  C latent  T rotary pairs  X columns of the queries
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_rows import GROUP, Fp8Weight

BLOCK_R = 128
NUM_WARPS = 8


def absorb_query_many(
    up_RX: Tensor,
    kv_b: Fp8Weight,
    cos_TP: Tensor,
    sin_TP: Tensor,
    positions_R: Tensor,
    out_RNC: Tensor,
) -> None:
    """What absorb_query does."""
    rows, heads, width = out_RNC.shape
    latent, rotary = kv_b.values_NK.shape[1], 2 * cos_TP.shape[1]
    if width != latent + rotary or kv_b.values_NK.shape[0] != heads * 2 * GROUP:
        raise ValueError(f"out is {list(out_RNC.shape)}, kv_b {list(kv_b.values_NK.shape)}: not one model's")
    if up_RX.dtype != torch.bfloat16 or out_RNC.dtype != torch.float16:
        raise ValueError(f"up is {up_RX.dtype}, out {out_RNC.dtype}: expected bf16 and fp16")
    _absorb_query_many[(heads, triton.cdiv(rows, BLOCK_R))](
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
        BLOCK_R=BLOCK_R,
        num_warps=NUM_WARPS,
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
