"""From the down projection to the caches: what a token leaves behind for later ones.

One kernel per row sums the parts of the product, normalises, turns and quantises: the query's latent for the
next product, the latent and its rotary key for the cache, the indexer's key for its own. Layouts are those of
kernels/sparse_mla.py and kernels/index_logits.py. Knows nothing of the products around it.

Letters: R rows  S slots of the cache  Q query latent  C latent  P rotary pairs (half of the rotary dims)
         I index dims  X everything the down projection makes: [Q | C | 2P | padding | I]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_rows import Fp8Rows
from kernels.index_logits import IndexCache
from kernels.latent_shape import LatentNorms, LatentShape
from kernels.quantize import inverse_of, scale_bits_of
from kernels.sparse_mla import QuantizedCache

NUM_WARPS = 4


def hadamard(size: int, device: torch.device) -> Tensor:
    """bf16 [size, size], entries +-1 in Sylvester's order; its scale, size ** -0.5, is applied after."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix.to(device, torch.bfloat16)


def latent_write(
    parts_SRX: Tensor,
    shape: LatentShape,
    norms: LatentNorms,
    cos_TP: Tensor,
    sin_TP: Tensor,
    positions_R: Tensor,
    slots_R: Tensor,
    hadamard_II: Tensor,
    query: Fp8Rows,
    latents: QuantizedCache,
    keys: IndexCache,
) -> None:
    """Fill `query` and the cache's slots.

    parts_SRX: fp32, added in order. cos_TP, sin_TP: fp32 by position. positions_R, slots_R: int32; a negative
    slot writes nothing.
    """
    splits, rows, width = parts_SRX.shape
    if shape.index_at + shape.index > width or positions_R.shape != (rows,) or slots_R.shape != (rows,):
        raise ValueError(f"parts are {list(parts_SRX.shape)}: {shape} and {len(slots_R)} slots do not fit")
    _latent_write[(rows, 3)](
        parts_SRX,
        norms.query_Q,
        norms.latent_C,
        norms.index_weight_I,
        norms.index_bias_I,
        norms.eps,
        norms.index_eps,
        cos_TP,
        sin_TP,
        positions_R,
        slots_R,
        hadamard_II,
        query.values_RK,
        query.scale_GR,
        query.scale_GR.stride(0),
        latents.latent_SC,
        latents.scale_SG,
        latents.rotary_SR,
        keys.key_SI,
        keys.scale_S,
        rows,
        SPLITS=splits,
        X=width,
        Q=shape.query,
        BLOCK_Q=triton.next_power_of_2(shape.query),
        C=shape.latent,
        P=shape.rotary // 2,
        I=shape.index,
        INDEX_AT=shape.index_at,
        num_warps=NUM_WARPS,
    )


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _latent_write(  # type: ignore[no-untyped-def]
    parts_ptr,  # noqa: ANN001
    query_norm_ptr,  # noqa: ANN001
    latent_norm_ptr,  # noqa: ANN001
    index_norm_ptr,  # noqa: ANN001
    index_bias_ptr,  # noqa: ANN001
    eps,  # noqa: ANN001
    index_eps,  # noqa: ANN001
    cos_ptr,  # noqa: ANN001
    sin_ptr,  # noqa: ANN001
    positions_ptr,  # noqa: ANN001
    slots_ptr,  # noqa: ANN001
    hadamard_ptr,  # noqa: ANN001
    query_ptr,  # noqa: ANN001
    query_scale_ptr,  # noqa: ANN001
    query_scale_stride,  # noqa: ANN001
    latent_ptr,  # noqa: ANN001
    latent_scale_ptr,  # noqa: ANN001
    rotary_ptr,  # noqa: ANN001
    index_ptr,  # noqa: ANN001
    index_scale_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    SPLITS: tl.constexpr,
    X: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    INDEX_AT: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    role = tl.program_id(1)
    at = parts_ptr + row.to(tl.int64) * X
    step = rows.to(tl.int64) * X
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if role == 0:
        _query(
            at, step, query_norm_ptr, eps, query_ptr + row * Q, query_scale_ptr + row, query_scale_stride,
            SPLITS, Q, BLOCK_Q,
        )  # fmt: skip
    elif slot >= 0:
        turn_at = tl.load(positions_ptr + row) * P
        if role == 1:
            _latent(
                at + Q, step, latent_norm_ptr, eps, cos_ptr + turn_at, sin_ptr + turn_at,
                latent_ptr + slot * C, latent_scale_ptr + slot * (C // 128), rotary_ptr + slot * (2 * P),
                SPLITS, C, P,
            )  # fmt: skip
        else:
            _index_key(
                at + INDEX_AT, step, index_norm_ptr, index_bias_ptr, index_eps, cos_ptr + turn_at,
                sin_ptr + turn_at, hadamard_ptr, index_ptr + slot * I, index_scale_ptr + slot, SPLITS, I, P,
            )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _query(  # type: ignore[no-untyped-def]
    at,  # noqa: ANN001
    step,  # noqa: ANN001
    norm_ptr,  # noqa: ANN001
    eps,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    scale_stride,  # noqa: ANN001
    SPLITS: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_Q: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    group = tl.arange(0, BLOCK_Q // GROUP)[:, None]
    d = group * GROUP + tl.arange(0, GROUP)[None, :]
    inside = d < Q
    value = _sum(at + d, step, inside, SPLITS)
    value = value * tl.rsqrt(tl.sum(tl.sum(value * value, axis=1), axis=0) / Q + eps)
    value = (value * tl.load(norm_ptr + d, mask=inside, other=0.0)).to(tl.bfloat16).to(tl.float32)
    bits = scale_bits_of(tl.max(tl.abs(value), axis=1, keep_dims=True))
    tl.store(out_ptr + d, (value * inverse_of(bits)).to(tl.float8e4nv), mask=inside)
    tl.store(scale_ptr + group * scale_stride, bits.to(tl.float32, bitcast=True), mask=group * GROUP < Q)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _latent(  # type: ignore[no-untyped-def]
    at,  # noqa: ANN001
    step,  # noqa: ANN001
    norm_ptr,  # noqa: ANN001
    eps,  # noqa: ANN001
    cos_ptr,  # noqa: ANN001
    sin_ptr,  # noqa: ANN001
    latent_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    rotary_ptr,  # noqa: ANN001
    SPLITS: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    group = tl.arange(0, C // GROUP)[:, None]
    d = group * GROUP + tl.arange(0, GROUP)[None, :]
    value = _sum(at + d, step, d < C, SPLITS)
    value = value * tl.rsqrt(tl.sum(tl.sum(value * value, axis=1), axis=0) / C + eps)
    value = value * tl.load(norm_ptr + d)
    bits = scale_bits_of(tl.max(tl.abs(value), axis=1, keep_dims=True))
    tl.store(latent_ptr + d, (value * inverse_of(bits)).to(tl.float8e4nv))
    tl.store(scale_ptr + group, bits.to(tl.float32, bitcast=True))
    p = tl.arange(0, P)
    cos = tl.load(cos_ptr + p)
    sin = tl.load(sin_ptr + p)
    first = _sum(at + C + p, step, p < P, SPLITS)
    second = _sum(at + C + P + p, step, p < P, SPLITS)
    tl.store(rotary_ptr + p, (first * cos - second * sin).to(tl.float16))
    tl.store(rotary_ptr + P + p, (second * cos + first * sin).to(tl.float16))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _index_key(  # type: ignore[no-untyped-def]
    at,  # noqa: ANN001
    step,  # noqa: ANN001
    norm_ptr,  # noqa: ANN001
    bias_ptr,  # noqa: ANN001
    eps,  # noqa: ANN001
    cos_ptr,  # noqa: ANN001
    sin_ptr,  # noqa: ANN001
    hadamard_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    SPLITS: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    P: tl.constexpr,
) -> None:
    i = tl.arange(0, I)
    p = tl.arange(0, P)
    key = _sum(at + i, step, i < I, SPLITS)
    mean = tl.sum(key, axis=0) / I
    inverse = tl.rsqrt(tl.sum((key - mean) * (key - mean), axis=0) / I + eps)
    cos = tl.load(cos_ptr + p)
    sin = tl.load(sin_ptr + p)
    first = (_sum(at + p, step, p < P, SPLITS) - mean) * inverse
    first = first * tl.load(norm_ptr + p) + tl.load(bias_ptr + p)
    second = (_sum(at + P + p, step, p < P, SPLITS) - mean) * inverse
    second = second * tl.load(norm_ptr + P + p) + tl.load(bias_ptr + P + p)
    still = (key - mean) * inverse * tl.load(norm_ptr + i) + tl.load(bias_ptr + i)
    # The first 2P dims turn, the rest stay; each part meets its own rows of the Hadamard matrix.
    mixed = _mix(hadamard_ptr, i, tl.where(i < 2 * P, 0.0, still), I)
    mixed += _mix(hadamard_ptr, p, first * cos - second * sin, I)
    mixed += _mix(hadamard_ptr, P + p, second * cos + first * sin, I)
    mixed *= tl.rsqrt(I * 1.0)
    bits = scale_bits_of(tl.max(tl.abs(mixed), axis=0))
    tl.store(out_ptr + i, (mixed * inverse_of(bits)).to(tl.float8e4nv))
    tl.store(scale_ptr, bits.to(tl.float32, bitcast=True))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _mix(matrix_ptr, rows, values, I: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, E741
    """values @ matrix[rows]"""
    i = tl.arange(0, I)
    matrix = tl.load(matrix_ptr + rows[:, None] * I + i[None, :]).to(tl.float32)
    return tl.sum(matrix * values[:, None], axis=0)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _sum(at, step, inside, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The parts of a split product, added in order."""
    total = tl.load(at, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(at + split * step, mask=inside, other=0.0)
    return total


def latent_write_reference(
    x_RX: Tensor,
    shape: LatentShape,
    norms: LatentNorms,
    cos_RP: Tensor,
    sin_RP: Tensor,
    hadamard_II: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """fp64 (query [R, Q], latent [R, C], rotary [R, 2P], index key [R, I]) before anything is quantised."""
    x = x_RX.double()
    latent_at = shape.query
    rotary_at = latent_at + shape.latent

    def rms(values: Tensor, weight: Tensor) -> Tensor:
        return values * (values.square().mean(-1, keepdim=True) + norms.eps).rsqrt() * weight.double()

    def turn(values: Tensor) -> Tensor:
        first, second = values.chunk(2, dim=-1)
        cos, sin = cos_RP.double(), sin_RP.double()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    key = x[:, shape.index_at : shape.index_at + shape.index]
    key = torch.nn.functional.layer_norm(
        key, (shape.index,), norms.index_weight_I.double(), norms.index_bias_I.double(), norms.index_eps
    )
    key = torch.cat([turn(key[:, : shape.rotary]), key[:, shape.rotary :]], -1)
    return (
        rms(x[:, :latent_at], norms.query_Q),
        rms(x[:, latent_at:rotary_at], norms.latent_C),
        turn(x[:, rotary_at : rotary_at + shape.rotary]),
        key @ hadamard_II.double() * shape.index**-0.5,
    )
