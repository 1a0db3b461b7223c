"""The indexer's queries: turned, rotated by Hadamard, in FP8, with one weight a head.

Scales of the queries and the constants of the score fold into the head weights, so that the logits kernel
multiplies once. Knows nothing of keys.

Letters: R rows  H index heads  I index dims  P rotary pairs  S parts of the head weights
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.quantize import inverse_of, scale_bits_of

NUM_WARPS = 4


def index_query(
    up_RX: Tensor,
    column: int,
    head_parts_SRH: Tensor,
    cos_TP: Tensor,
    sin_TP: Tensor,
    positions_R: Tensor,
    hadamard_II: Tensor,
    query_RHI: Tensor,
    weights_RH: Tensor,
) -> None:
    """query_RHI (e4m3) and weights_RH (fp32) from columns `column`... of up_RX (bf16).

    head_parts_SRH: fp32 parts of h @ weights_proj.T.
    """
    rows, heads, dims = query_RHI.shape
    splits = head_parts_SRH.shape[0]
    if up_RX.dtype != torch.bfloat16 or up_RX.shape[0] != rows or column + heads * dims > up_RX.shape[1]:
        raise ValueError(f"up is {up_RX.dtype} {list(up_RX.shape)}: no {heads} x {dims} at column {column}")
    if head_parts_SRH.shape[1:] != (rows, heads) or weights_RH.shape != (rows, heads):
        raise ValueError(f"head weights {list(head_parts_SRH.shape)} are not for {rows} rows, {heads} heads")
    _index_query[(rows,)](
        up_RX,
        head_parts_SRH,
        cos_TP,
        sin_TP,
        positions_R,
        hadamard_II,
        query_RHI,
        weights_RH,
        rows,
        (heads * dims) ** -0.5,
        X=up_RX.shape[1],
        COLUMN=column,
        H=heads,
        I=dims,
        P=cos_TP.shape[1],
        SPLITS=splits,
        num_warps=NUM_WARPS,
    )


def index_query_reference(query_RHI: Tensor, cos_RP: Tensor, sin_RP: Tensor, hadamard_II: Tensor) -> Tensor:
    """fp64 [R, H, I] before it is quantised."""
    rotary = 2 * cos_RP.shape[1]
    first, second = query_RHI[..., :rotary].double().chunk(2, dim=-1)
    cos, sin = cos_RP.double()[:, None], sin_RP.double()[:, None]
    parts = [first * cos - second * sin, second * cos + first * sin, query_RHI[..., rotary:].double()]
    mixed: Tensor = torch.cat(parts, -1) @ hadamard_II.double()
    return mixed.mul_(query_RHI.shape[-1] ** -0.5)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _index_query(  # type: ignore[no-untyped-def]
    up_ptr,  # noqa: ANN001
    head_ptr,  # noqa: ANN001
    cos_ptr,  # noqa: ANN001
    sin_ptr,  # noqa: ANN001
    positions_ptr,  # noqa: ANN001
    hadamard_ptr,  # noqa: ANN001
    query_ptr,  # noqa: ANN001
    weights_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    constant,  # noqa: ANN001
    X: tl.constexpr,
    COLUMN: tl.constexpr,
    H: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    P: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    STILL: tl.constexpr = I - 2 * P
    row = tl.program_id(0)
    h = tl.arange(0, H)
    p = tl.arange(0, P)
    s = tl.arange(0, STILL)
    i = tl.arange(0, I)
    position = tl.load(positions_ptr + row)
    cos = tl.load(cos_ptr + position * P + p)[None, :]
    sin = tl.load(sin_ptr + position * P + p)[None, :]
    at = up_ptr + row.to(tl.int64) * X + COLUMN + h[:, None] * I
    first = tl.load(at + p[None, :]).to(tl.float32)
    second = tl.load(at + P + p[None, :]).to(tl.float32)
    still = tl.load(at + 2 * P + s[None, :])
    left = (first * cos - second * sin).to(tl.bfloat16)
    right = (second * cos + first * sin).to(tl.bfloat16)
    h_at = hadamard_ptr + i[None, :]
    turned = tl.dot(left, tl.load(h_at + p[:, None] * I))
    turned = tl.dot(right, tl.load(h_at + (P + p[:, None]) * I), turned)
    turned = tl.dot(still, tl.load(h_at + (2 * P + s[:, None]) * I), turned) * tl.rsqrt(I * 1.0)
    bits = scale_bits_of(tl.max(tl.abs(turned), axis=1))
    values = (turned * inverse_of(bits)[:, None]).to(tl.float8e4nv)
    tl.store(query_ptr + (row * H + h[:, None]).to(tl.int64) * I + i[None, :], values)
    weight = tl.zeros([H], tl.float32)
    for split in tl.static_range(SPLITS):
        weight += tl.load(head_ptr + (split * rows + row).to(tl.int64) * H + h)
    scale = bits.to(tl.float32, bitcast=True)
    tl.store(weights_ptr + row * H + h, weight * scale * constant)
