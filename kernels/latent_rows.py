"""What a token leaves in the cache and asks of it: norms and rotations between an attention's products.

One loop over rows on a CPU, each row for itself, so that its bits do not depend on how many there are. Knows
nothing of who attends.

Letters: T tokens  A columns of the first product  K query latent  C latent  R rotary dims  I index dims
         N heads  H index heads  X columns of the second product  S cache slots
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.compiled import IS_COMPILED, LANES, Floats, compiled, floats, fma, indices, inlined
from kernels.norm import centre, layer_norm, normalise, rms_norm
from kernels.rope import rotate


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """cos and sin of each token's position, fp32 and contiguous, as kernels/rope.py has them."""

    cos_T1R: Tensor
    sin_T1R: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenNorms:
    """fp32 weights of what is normalised; None where a model has no such part. index_eps: of LayerNorm."""

    query_K: Tensor | None
    latent_C: Tensor
    index_weight_I: Tensor | None
    index_bias_I: Tensor | None
    eps: float
    index_eps: float


def keep_tokens(
    down_TA: Tensor, norms: TokenNorms, turns: Turns, slots_T: Tensor, latent_SC: Tensor, index_SI: Tensor
) -> Tensor | None:
    """Write each token's latent and index key to its slot; its normalised query latent [T, K], if any.

    down_TA: columns [K | C | R | I | anything], rows may lie apart. latent_SC: C + R values of a slot.
    """
    rank = 0 if norms.query_K is None else len(norms.query_K)
    if not _is_plain(down_TA):
        return keep_tokens_reference(down_TA, norms, turns, slots_T, latent_SC, index_SI)
    query_TK = down_TA.new_empty(len(down_TA), rank)
    keep_tokens_at(
        down_TA.data_ptr(),
        down_TA.stride(0),
        len(down_TA),
        rank,
        len(norms.latent_C),
        turns.cos_T1R.shape[2],
        index_SI.shape[1],
        _address(norms.query_K),
        norms.latent_C.data_ptr(),
        _address(norms.index_weight_I),
        _address(norms.index_bias_I),
        turns.cos_T1R.data_ptr(),
        turns.sin_T1R.data_ptr(),
        slots_T.data_ptr(),
        latent_SC.data_ptr(),
        index_SI.data_ptr(),
        norms.eps,
        norms.index_eps,
        query_TK.data_ptr(),
    )
    return query_TK if rank else None


def keep_tokens_reference(
    down_TA: Tensor, norms: TokenNorms, turns: Turns, slots_T: Tensor, latent_SC: Tensor, index_SI: Tensor
) -> Tensor | None:
    """The same by torch, for other dtypes."""
    rank = 0 if norms.query_K is None else len(norms.query_K)
    latent, rotary, index = len(norms.latent_C), turns.cos_T1R.shape[2], index_SI.shape[1]
    widths = [rank, latent, rotary, index, down_TA.shape[1] - rank - latent - rotary - index]
    query_TK, latent_TC, key_TR, index_TI, _ = torch.split(down_TA, widths, 1)
    latent_TC = rms_norm(latent_TC, norms.latent_C, norms.eps)
    latent_SC.index_copy_(0, slots_T, torch.cat([latent_TC, _turned(key_TR, turns)], 1))
    if norms.index_weight_I is not None and norms.index_bias_I is not None:
        index_TI = layer_norm(index_TI, norms.index_weight_I, norms.index_bias_I, norms.index_eps)
        index_TI = torch.cat([_turned(index_TI[:, :rotary], turns), index_TI[:, rotary:]], 1)
        index_SI.index_copy_(0, slots_T, index_TI)
    return None if norms.query_K is None else rms_norm(query_TK, norms.query_K, norms.eps)


def turn_heads(x_TNR: Tensor, turns: Turns, out_TNR: Tensor) -> None:
    """Rotate every head; tokens and heads may lie apart, and out_TNR may be x_TNR."""
    if not _is_plain(x_TNR):
        out_TNR.copy_(rotate(x_TNR, turns.cos_T1R, turns.sin_T1R))
        return
    num_tokens, heads, rotary = x_TNR.shape
    turn_heads_at(
        x_TNR.data_ptr(),
        x_TNR.stride(0),
        x_TNR.stride(1),
        num_tokens,
        heads,
        rotary,
        turns.cos_T1R.data_ptr(),
        turns.sin_T1R.data_ptr(),
        out_TNR.data_ptr(),
        out_TNR.stride(0),
        out_TNR.stride(1),
    )


def _turned(x_TR: Tensor, turns: Turns) -> Tensor:
    return rotate(x_TR[:, None], turns.cos_T1R, turns.sin_T1R)[:, 0]


def _is_plain(x: Tensor) -> bool:
    return IS_COMPILED and x.is_cpu and x.dtype == torch.float32 and x.stride(-1) == 1


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@inlined
def _turn(x: Floats, cos: Floats, sin: Floats, out: Floats) -> None:
    """The first half of sin is negated; out may be x."""
    half = len(x) // 2
    for i in range(half):
        first, second = x[i], x[half + i]
        out[i] = fma(second, sin[i], first * cos[i])
        out[half + i] = fma(first, sin[half + i], second * cos[half + i])


@compiled("void(int64" + 15 * ", int64" + ", float64, float64, int64)")
def keep_tokens_at(
    down_at: int,
    stride: int,
    num_tokens: int,
    rank: int,
    width: int,
    rotary: int,
    index_dims: int,
    query_norm_at: int,
    latent_norm_at: int,
    key_norm_at: int,
    key_bias_at: int,
    cos_at: int,
    sin_at: int,
    slots_at: int,
    latent_at: int,
    index_at: int,
    eps: float,
    index_eps: float,
    query_at: int,
) -> None:
    slots, lanes = indices(slots_at, num_tokens), np.empty(LANES, np.float32)
    latent_norm = floats(latent_norm_at, width)
    for t in range(num_tokens):
        row = down_at + 4 * t * stride
        cos, sin = floats(cos_at + 4 * t * rotary, rotary), floats(sin_at + 4 * t * rotary, rotary)
        if rank:
            query = floats(query_at + 4 * t * rank, rank)
            normalise(floats(row, rank), floats(query_norm_at, rank), np.float32(eps), query, lanes)
        kept = latent_at + 4 * slots[t] * (width + rotary)
        latent, key = floats(row + 4 * rank, width), floats(row + 4 * (rank + width), rotary)
        normalise(latent, latent_norm, np.float32(eps), floats(kept, width), lanes)
        _turn(key, cos, sin, floats(kept + 4 * width, rotary))
        if index_dims:
            index_key = floats(row + 4 * (rank + width + rotary), index_dims)
            own = floats(index_at + 4 * slots[t] * index_dims, index_dims)
            weight, bias = floats(key_norm_at, index_dims), floats(key_bias_at, index_dims)
            centre(index_key, weight, bias, np.float32(index_eps), own, lanes)
            _turn(own[:rotary], cos, sin, own[:rotary])


@compiled("void(int64" + 10 * ", int64" + ")")
def turn_heads_at(
    x_at: int,
    stride: int,
    head_stride: int,
    num_tokens: int,
    heads: int,
    rotary: int,
    cos_at: int,
    sin_at: int,
    out_at: int,
    out_stride: int,
    out_head_stride: int,
) -> None:
    for t in range(num_tokens):
        cos, sin = floats(cos_at + 4 * t * rotary, rotary), floats(sin_at + 4 * t * rotary, rotary)
        for n in range(heads):
            x = floats(x_at + 4 * (t * stride + n * head_stride), rotary)
            _turn(x, cos, sin, floats(out_at + 4 * (t * out_stride + n * out_head_stride), rotary))
