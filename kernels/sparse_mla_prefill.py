"""Sparse MLA prefill: many queries over 16-bit keys.

As kernels/sparse_mla.py, but over latents that were de-quantised once for all queries of a chunk. With as
many splits as decode has, a query has decode's bits; with one there is nothing to combine. The kernel of
kernels/sparse_mla_prefill_gluon.py is launched where it can be, the one below elsewhere. Knows nothing of how
slots were chosen.

Letters: T queries  N heads  C latent 512 + rotary 64  J chosen slots  S rows of the workspace
         K shares of the J slots (splits)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sparse_mla import (
    HEADS_PER_PROGRAM,
    LATENT_DIMS,
    ROTARY_DIMS,
    attend_slots_reference,
    check_tensor,
    combine_splits,
    has_gluon,
)

try:
    from kernels.sparse_mla_prefill_gluon import sparse_mla_prefill_gluon_kernel
except ImportError:  # a Triton without Gluon
    sparse_mla_prefill_gluon_kernel = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SparsePrefillConfig:
    """gluon: as in kernels/sparse_mla.py, with registers of a thread of two of its parts; what follows is of
    the other kernel.
    """

    gluon: bool = True
    weigher_registers: int = 200
    producer_registers: int = 40
    block_keys: int = 64
    num_warps: int = 8
    num_stages: int = 2


CONFIG = SparsePrefillConfig()


def sparse_mla_prefill(
    query_TNC: Tensor,
    slots_TJ: Tensor,
    keys_SC: Tensor,
    *,
    scale: float,
    splits: int = 1,
    config: SparsePrefillConfig = CONFIG,
) -> Tensor:
    """Softmax-weighted latents, bf16 [T, N, 512].

    query_TNC, keys_SC: fp16, or both bf16 without Gluon, [T, N, 576] and [S, 576]. slots_TJ: int32, rows of
    keys_SC, those that are none -1 and last; J a multiple of splits * block_keys.
    """
    _check(query_TNC, slots_TJ, keys_SC, splits * config.block_keys)
    num_queries, heads, _ = query_TNC.shape
    out_TNC = query_TNC.new_empty(num_queries, heads, LATENT_DIMS, dtype=torch.bfloat16)
    if not num_queries:
        return out_TNC
    partial_TKNC = out_TNC
    if splits > 1:
        partial_TKNC = query_TNC.new_empty(num_queries, splits, heads, LATENT_DIMS)
    lse_TKN = query_TNC.new_empty(num_queries, splits, heads, dtype=torch.float32)
    tensors = (query_TNC, slots_TJ, keys_SC, partial_TKNC, lse_TKN, scale * math.log2(math.e))
    blocks = heads // HEADS_PER_PROGRAM
    if config.gluon and query_TNC.dtype == torch.float16 and has_gluon(query_TNC.device):
        sparse_mla_prefill_gluon_kernel[(blocks, num_queries)](
            *tensors,
            HEADS=heads,
            SLOTS=slots_TJ.shape[1],
            SHARES=splits,
            WEIGHER_REGISTERS=config.weigher_registers,
            PRODUCER_REGISTERS=config.producer_registers,
            num_warps=4,
            num_stages=1,
        )
    else:
        sparse_mla_prefill_kernel[(blocks, splits, num_queries)](
            *tensors,
            HEADS=heads,
            SLOTS=slots_TJ.shape[1],
            SPLITS=splits,
            BLOCK_N=config.block_keys,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    if splits > 1:
        combine_splits(partial_TKNC, lse_TKN, out_TNC)
    return out_TNC


def _check(query_TNC: Tensor, slots_TJ: Tensor, keys_SC: Tensor, step: int) -> None:
    (num_queries, heads, _), num_chosen = query_TNC.shape, slots_TJ.shape[1]
    dtype, width, device = query_TNC.dtype, LATENT_DIMS + ROTARY_DIMS, query_TNC.device
    if dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"query_TNC is {dtype}: expected float16 or bfloat16")
    check_tensor("query_TNC", query_TNC, dtype, (num_queries, heads, width), device)
    check_tensor("slots_TJ", slots_TJ, torch.int32, (num_queries, num_chosen), device)
    check_tensor("keys_SC", keys_SC, dtype, (keys_SC.shape[0], width), device)
    if heads % HEADS_PER_PROGRAM or num_chosen % step:
        raise ValueError(
            f"{heads} heads and {num_chosen} slots: expected multiples of {HEADS_PER_PROGRAM} and {step}; "
            "pad slots with -1"
        )


def sparse_mla_prefill_reference(
    query_TNC: Tensor, slots_TJ: Tensor, keys_SC: Tensor, *, scale: float
) -> Tensor:
    """The definition, fp64 [T, N, 512]."""
    return attend_slots_reference(query_TNC, slots_TJ, keys_SC, scale=scale)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def sparse_mla_prefill_kernel(
    query_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    scale_log2: tl.float32,
    HEADS: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    head_H = tl.program_id(0) * 64 + tl.arange(0, 64)
    split, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    SHARE: tl.constexpr = SLOTS // SPLITS
    slots_ptr += row * SLOTS + split * SHARE
    share = tl.arange(0, triton.next_power_of_2(SHARE))
    share_slots = tl.load(slots_ptr + share, mask=share < SHARE, other=-1)
    end = tl.max(tl.where(share_slots >= 0, share + 1, 0))  # what follows is padding

    dims, rotary = tl.arange(0, 128), tl.arange(0, 64)
    query_ptr += row * (HEADS * 576)
    at_HD = head_H[:, None] * 576 + dims[None, :]
    q0 = tl.load(query_ptr + at_HD)
    q1 = tl.load(query_ptr + at_HD + 128)
    q2 = tl.load(query_ptr + at_HD + 256)
    q3 = tl.load(query_ptr + at_HD + 384)
    qr = tl.load(query_ptr + head_H[:, None] * 576 + 512 + rotary[None, :])

    top_H = tl.full((64,), float("-inf"), tl.float32)
    sum_H = tl.zeros((64,), tl.float32)
    acc0 = tl.zeros((64, 128), tl.float32)
    acc1 = tl.zeros((64, 128), tl.float32)
    acc2 = tl.zeros((64, 128), tl.float32)
    acc3 = tl.zeros((64, 128), tl.float32)
    for start in tl.range(0, end, BLOCK_N):
        chosen_N = tl.load(slots_ptr + start + tl.arange(0, BLOCK_N))
        key_N = keys_ptr + tl.maximum(chosen_N, 0).to(tl.int64) * 576
        at_ND = key_N[:, None] + dims[None, :]
        k0 = tl.load(at_ND)
        k1 = tl.load(at_ND + 128)
        k2 = tl.load(at_ND + 256)
        k3 = tl.load(at_ND + 384)
        kr = tl.load(key_N[:, None] + 512 + rotary[None, :])
        score_HN = tl.dot(qr, tl.trans(kr))
        score_HN = tl.dot(q0, tl.trans(k0), score_HN)
        score_HN = tl.dot(q1, tl.trans(k1), score_HN)
        score_HN = tl.dot(q2, tl.trans(k2), score_HN)
        score_HN = tl.dot(q3, tl.trans(k3), score_HN) * scale_log2
        score_HN = tl.where(chosen_N[None, :] >= 0, score_HN, float("-inf"))
        grown_H = tl.maximum(top_H, tl.max(score_HN, 1))
        base_H = tl.where(grown_H == float("-inf"), 0.0, grown_H)  # a tile may be padding alone
        shrink_H = tl.exp2(top_H - base_H)
        weight_HN = tl.exp2(score_HN - base_H[:, None])
        sum_H = sum_H * shrink_H + tl.sum(weight_HN, 1)
        weight_HN = weight_HN.to(k0.dtype)
        acc0 = tl.dot(weight_HN, k0, acc0 * shrink_H[:, None])
        acc1 = tl.dot(weight_HN, k1, acc1 * shrink_H[:, None])
        acc2 = tl.dot(weight_HN, k2, acc2 * shrink_H[:, None])
        acc3 = tl.dot(weight_HN, k3, acc3 * shrink_H[:, None])
        top_H = grown_H

    over_H = 1.0 / tl.where(sum_H > 0, sum_H, 1.0)
    at_H = (row * SPLITS + split) * HEADS + head_H
    at_HD = at_H[:, None] * 512 + dims[None, :]
    tl.store(out_ptr + at_HD, (acc0 * over_H[:, None]).to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + at_HD + 128, (acc1 * over_H[:, None]).to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + at_HD + 256, (acc2 * over_H[:, None]).to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + at_HD + 384, (acc3 * over_H[:, None]).to(out_ptr.dtype.element_ty))
    if SPLITS > 1:
        tl.store(lse_ptr + at_H, top_H + tl.log2(sum_H))  # -inf where there was no key
