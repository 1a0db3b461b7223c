"""Sparse MLA decode: each query over the slots it chose.

The cache holds E4M3 latents with a power-of-two scale per 128 dims and 16-bit rotary keys; a program takes 64
heads of one query over its share of the keys, de-quantises to fp16 (exact: E4M3 times a power of two) and
keeps a running softmax. Shares are combined by their log-sum-exp, in order. Knows nothing of how slots were
chosen.

Letters: T queries  N heads  C latent 512 + rotary 64  J chosen slots  S cache slots  G scales of a slot
         K shares of the J slots (splits)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

try:
    from kernels.sparse_mla_gluon import sparse_mla_gluon_kernel
except ImportError:  # a Triton without Gluon
    sparse_mla_gluon_kernel = None

LATENT_DIMS = 512
ROTARY_DIMS = 64
GROUP_DIMS = 128  # of a latent that share a scale
HEADS_PER_PROGRAM = 64
MAX_SLOTS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseMlaConfig:
    """splits: shares of the slots, each a program of its own.

    gluon: kernels/sparse_mla_gluon.py, whose block is of 64 keys, where the device is one for it; elsewhere
    the kernel below, which what follows is about.
    """

    splits: int
    gluon: bool = False
    block_keys: int = 64
    num_warps: int = 8
    num_stages: int = 3


# Of at most this many queries. Exact mode: one split for every T, so that a query's bits know no other.
THROUGHPUT = (
    (2, SparseMlaConfig(splits=32, gluon=True)),
    (4, SparseMlaConfig(splits=16, gluon=True)),
    (8, SparseMlaConfig(splits=8, gluon=True)),
    (16, SparseMlaConfig(splits=4, gluon=True)),
    (32, SparseMlaConfig(splits=2, gluon=True)),
    (1 << 30, SparseMlaConfig(splits=1, gluon=True)),
)
EXACT = SparseMlaConfig(splits=4, gluon=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedCache:
    """One layer's latents: E4M3 [S, 512], fp32 [S, 4] powers of two within fp16, fp16 [S, 64]."""

    latent_SC: Tensor
    scale_SG: Tensor
    rotary_SR: Tensor


def config_for(num_queries: int, *, exact: bool) -> SparseMlaConfig:
    return EXACT if exact else next(config for most, config in THROUGHPUT if num_queries <= most)


def sparse_mla(
    query_TNC: Tensor, slots_TJ: Tensor, cache: QuantizedCache, *, scale: float, config: SparseMlaConfig
) -> Tensor:
    """Softmax-weighted latents, bf16 [T, N, 512].

    query_TNC: fp16 [T, N, 576], N a multiple of 64. slots_TJ: int32, J <= 2048 a multiple of splits *
    block_keys, -1 where there is none; a query with none at all gets zeros.
    """
    _check(query_TNC, slots_TJ, cache, config)
    num_queries, heads, _ = query_TNC.shape
    out_TNC = query_TNC.new_empty(num_queries, heads, LATENT_DIMS, dtype=torch.bfloat16)
    if num_queries == 0:
        return out_TNC
    splits = config.splits
    partial_TKNC = out_TNC
    if splits > 1:
        partial_TKNC = query_TNC.new_empty(num_queries, splits, heads, LATENT_DIMS)
    lse_TKN = query_TNC.new_empty(num_queries, splits, heads, dtype=torch.float32)
    gluon = config.gluon and has_gluon(query_TNC.device)
    kernel = sparse_mla_gluon_kernel if gluon else sparse_mla_kernel
    kernel[(heads // HEADS_PER_PROGRAM, splits, num_queries)](
        query_TNC,
        slots_TJ,
        cache.latent_SC,
        cache.scale_SG,
        cache.rotary_SR,
        partial_TKNC,
        lse_TKN,
        scale * math.log2(math.e),
        HEADS=heads,
        SLOTS=slots_TJ.shape[1],
        SPLITS=splits,
        **kernel_options(config, gluon=gluon),
    )
    if splits > 1:
        combine_splits(partial_TKNC, lse_TKN, out_TNC)
    return out_TNC


def combine_splits(partial_TKNC: Tensor, lse_TKN: Tensor, out_TNC: Tensor) -> None:
    """out_TNC: shares weighted by what each saw, in order; one that saw nothing (lse -inf) is not read."""
    num_queries, splits, heads, _ = partial_TKNC.shape
    combined_heads = 1 if splits > 4 else 4  # of a program; with many shares there are few queries
    combine_kernel[(heads // combined_heads, num_queries)](
        partial_TKNC,
        lse_TKN,
        out_TNC,
        HEADS=heads,
        SPLITS=splits,
        BLOCK_H=combined_heads,
        num_warps=4,
    )


def has_gluon(device: torch.device) -> bool:
    """Whether Gluon is there, and the device of the one kind whose instructions the kernel names."""
    if sparse_mla_gluon_kernel is None or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) == (9, 0)


def kernel_options(config: SparseMlaConfig, *, gluon: bool) -> dict[str, int]:
    """What a launch names beside the shapes."""
    if gluon:
        return {"num_warps": 4, "num_stages": 1}
    return {"BLOCK_N": config.block_keys, "num_warps": config.num_warps, "num_stages": config.num_stages}


def sparse_mla_reference(
    query_TNC: Tensor, slots_TJ: Tensor, cache: QuantizedCache, *, scale: float
) -> Tensor:
    """The definition, fp64 [T, N, 512]."""
    groups_SGC = cache.latent_SC.double().view(-1, LATENT_DIMS // GROUP_DIMS, GROUP_DIMS)
    latent_SC = (groups_SGC * cache.scale_SG.double()[..., None]).flatten(1)
    keys_SC = torch.cat([latent_SC, cache.rotary_SR.double()], -1)
    return attend_slots_reference(query_TNC, slots_TJ, keys_SC, scale=scale)


def attend_slots_reference(query_TNC: Tensor, slots_TJ: Tensor, keys_SC: Tensor, *, scale: float) -> Tensor:
    """fp64 [T, N, 512]: a query at a time, over the keys whose slots are not -1."""
    out_TNC = query_TNC.new_zeros(*query_TNC.shape[:2], LATENT_DIMS, dtype=torch.float64)
    for query_NC, slots_J, out_NC in zip(query_TNC.double(), slots_TJ, out_TNC, strict=True):
        keys_JC = keys_SC[slots_J[slots_J >= 0].long()].double()
        if len(keys_JC):
            weights_NJ = torch.softmax(query_NC @ keys_JC.T * scale, -1)
            out_NC.copy_(weights_NJ @ keys_JC[:, :LATENT_DIMS])
    return out_TNC


def _check(query_TNC: Tensor, slots_TJ: Tensor, cache: QuantizedCache, config: SparseMlaConfig) -> None:
    num_slots, num_chosen = cache.latent_SC.shape[0], slots_TJ.shape[1]
    groups = LATENT_DIMS // GROUP_DIMS
    shape = (query_TNC.shape[0], query_TNC.shape[1], LATENT_DIMS + ROTARY_DIMS)
    for name, tensor, dtype, wanted in (
        ("query_TNC", query_TNC, torch.float16, shape),
        ("slots_TJ", slots_TJ, torch.int32, (shape[0], num_chosen)),
        ("latent_SC", cache.latent_SC, torch.float8_e4m3fn, (num_slots, LATENT_DIMS)),
        ("scale_SG", cache.scale_SG, torch.float32, (num_slots, groups)),
        ("rotary_SR", cache.rotary_SR, torch.float16, (num_slots, ROTARY_DIMS)),
    ):
        check_tensor(name, tensor, dtype, wanted, query_TNC.device)
    if shape[1] % HEADS_PER_PROGRAM:
        raise ValueError(f"query_TNC has {shape[1]} heads: expected a multiple of {HEADS_PER_PROGRAM}")
    step = config.splits * config.block_keys
    if num_chosen > MAX_SLOTS or num_chosen % step:
        raise ValueError(
            f"slots_TJ has {num_chosen} columns: expected a multiple of {config.splits} splits * "
            f"{config.block_keys} keys, at most {MAX_SLOTS}; pad with -1"
        )


def check_tensor(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    """What every launcher asks of every tensor: these, and contiguous."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}: expected {dtype} {list(shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}: expected {device}, as the others")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} has strides {tensor.stride()}: expected contiguous, call .contiguous()")


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _dequantize(
    latent_ptr: tl.tensor, scale_ptr: tl.tensor, slot_N: tl.tensor, GROUP: tl.constexpr
) -> tl.tensor:
    """fp16 [BLOCK_N, 128]: dims GROUP * 128 and on of these slots."""
    dims = GROUP * 128 + tl.arange(0, 128)
    values_ND = tl.load(latent_ptr + slot_N[:, None] * 512 + dims[None, :]).to(tl.float16)
    scale_N = tl.load(scale_ptr + slot_N * 4 + GROUP).to(tl.float16)
    return values_ND * scale_N[:, None]


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def sparse_mla_kernel(
    query_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    latent_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    rotary_ptr: tl.tensor,
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
        slot_N = tl.maximum(chosen_N, 0).to(tl.int64)
        k0 = _dequantize(latent_ptr, scale_ptr, slot_N, 0)
        k1 = _dequantize(latent_ptr, scale_ptr, slot_N, 1)
        k2 = _dequantize(latent_ptr, scale_ptr, slot_N, 2)
        k3 = _dequantize(latent_ptr, scale_ptr, slot_N, 3)
        kr = tl.load(rotary_ptr + slot_N[:, None] * 64 + rotary[None, :])
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
        weight_HN = weight_HN.to(tl.float16)
        acc0 = tl.dot(weight_HN, k0, acc0 * shrink_H[:, None])
        acc1 = tl.dot(weight_HN, k1, acc1 * shrink_H[:, None])
        acc2 = tl.dot(weight_HN, k2, acc2 * shrink_H[:, None])
        acc3 = tl.dot(weight_HN, k3, acc3 * shrink_H[:, None])
        top_H = grown_H

    over_H = 1.0 / tl.where(sum_H > 0, sum_H, 1.0)  # a convex sum of fp16 values is within fp16
    at_H = (row * SPLITS + split) * HEADS + head_H
    at_HD = at_H[:, None] * 512 + dims[None, :]
    tl.store(out_ptr + at_HD, (acc0 * over_H[:, None]).to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + at_HD + 128, (acc1 * over_H[:, None]).to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + at_HD + 256, (acc2 * over_H[:, None]).to(out_ptr.dtype.element_ty))
    tl.store(out_ptr + at_HD + 384, (acc3 * over_H[:, None]).to(out_ptr.dtype.element_ty))
    if SPLITS > 1:
        tl.store(lse_ptr + at_H, top_H + tl.log2(sum_H))  # -inf where there was no key


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def combine_kernel(
    partial_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    out_ptr: tl.tensor,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """Shares of a query's keys, weighted by what each saw; in order of the shares."""
    head_H = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    row = tl.program_id(1).to(tl.int64)
    split_K, dims = tl.arange(0, SPLITS), tl.arange(0, 512)
    first_H = row * SPLITS * HEADS + head_H
    lse_KH = tl.load(lse_ptr + first_H[None, :] + split_K[:, None] * HEADS)
    top_H = tl.max(lse_KH, 0)
    top_H = tl.where(top_H == float("-inf"), 0.0, top_H)
    sum_H = tl.zeros((BLOCK_H,), tl.float32)
    out_HD = tl.zeros((BLOCK_H, 512), tl.float32)
    for split in tl.static_range(SPLITS):
        at_H = first_H + split * HEADS
        weight_H = tl.exp2(tl.load(lse_ptr + at_H) - top_H)
        is_there_H1 = (weight_H > 0)[:, None]
        part_HD = tl.load(partial_ptr + at_H[:, None] * 512 + dims[None, :], mask=is_there_H1, other=0.0)
        sum_H += weight_H
        out_HD += part_HD.to(tl.float32) * weight_H[:, None]
    out_HD *= (1.0 / tl.where(sum_H > 0, sum_H, 1.0))[:, None]
    at_HD = (row * HEADS + head_H)[:, None] * 512 + dims[None, :]
    tl.store(out_ptr + at_HD, out_HD.to(tl.bfloat16))
