"""A sequence's latents out of the paged FP8 cache, in order: de-quantised, or as rows of a product.

Prefill's many queries see the same keys: they are made 16-bit once for all of them. E4M3 times a power of two
is exact in fp16, and the same bits that decode makes as it gathers. A product takes them in FP8, as they are.
Knows nothing of queries.

Letters: P pages  S = P * 64 keys  C latent 512 + rotary 64
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_rows import Fp8Rows, empty_rows
from kernels.sparse_mla import LATENT_DIMS, ROTARY_DIMS, QuantizedCache, check_tensor

PAGE_TOKENS = 64  # as model.cache has it; kernels know no model
NUM_WARPS = 8


def unpage_latents(cache: QuantizedCache, pages_P: Tensor) -> Tensor:
    """fp16 [P * 64, 576]: latent and rotary key of every token of these pages (int32), in order."""
    check_tensor("pages_P", pages_P, torch.int32, (len(pages_P),), cache.latent_SC.device)
    keys_SC = cache.rotary_SR.new_empty(len(pages_P) * PAGE_TOKENS, LATENT_DIMS + ROTARY_DIMS)
    if len(pages_P):
        _unpage_latents[(len(pages_P),)](
            cache.latent_SC, cache.scale_SG, cache.rotary_SR, pages_P, keys_SC, num_warps=NUM_WARPS
        )
    return keys_SC


def unpage_rows(cache: QuantizedCache, pages_P: Tensor, num_keys: int) -> tuple[Fp8Rows, Tensor]:
    """Latents as the cache has them, and fp16 [S, 64] rotary keys: of the first num_keys tokens, in order."""
    check_tensor("pages_P", pages_P, torch.int32, (len(pages_P),), cache.latent_SC.device)
    if not 0 <= num_keys <= len(pages_P) * PAGE_TOKENS:
        raise ValueError(f"{num_keys} keys of {len(pages_P)} pages")
    latents = empty_rows(num_keys, LATENT_DIMS, pages_P.device)
    rotary_SR = cache.rotary_SR.new_empty(num_keys, ROTARY_DIMS)
    if num_keys:
        _unpage_rows[(triton.cdiv(num_keys, PAGE_TOKENS),)](
            cache.latent_SC,
            cache.scale_SG,
            cache.rotary_SR,
            pages_P,
            latents.values_RK,
            latents.scale_GR,
            rotary_SR,
            num_keys,
            num_warps=NUM_WARPS,
        )
    return latents, rotary_SR


def unpage_rows_reference(cache: QuantizedCache, pages_P: Tensor, num_keys: int) -> tuple[Fp8Rows, Tensor]:
    slots_S = _slots(pages_P)[:num_keys]
    latents = Fp8Rows(cache.latent_SC[slots_S], cache.scale_SG[slots_S].t().contiguous())
    return latents, cache.rotary_SR[slots_S]


def unpage_latents_reference(cache: QuantizedCache, pages_P: Tensor) -> Tensor:
    slots_S = _slots(pages_P)
    latent_SGC = cache.latent_SC[slots_S].half().view(len(slots_S), 4, -1)
    latent_SC = (latent_SGC * cache.scale_SG[slots_S].half()[..., None]).flatten(1)
    return torch.cat([latent_SC, cache.rotary_SR[slots_S]], -1)


def _slots(pages_P: Tensor) -> Tensor:
    offset = torch.arange(PAGE_TOKENS, device=pages_P.device)
    return (pages_P.long()[:, None] * PAGE_TOKENS + offset).flatten()


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _unpage_latents(  # type: ignore[no-untyped-def]
    latent_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    rotary_ptr,  # noqa: ANN001
    pages_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
) -> None:
    page = tl.program_id(0)
    token = tl.arange(0, 64)[:, None]
    dims = tl.arange(0, 128)[None, :]
    turned = tl.arange(0, 64)[None, :]
    slot = tl.load(pages_ptr + page).to(tl.int64) * 64 + token
    at = out_ptr + (page.to(tl.int64) * 64 + token) * 576
    for group in tl.static_range(4):
        values = tl.load(latent_ptr + slot * 512 + group * 128 + dims).to(tl.float16)
        scale = tl.load(scale_ptr + slot * 4 + group).to(tl.float16)
        tl.store(at + group * 128 + dims, values * scale)
    tl.store(at + 512 + turned, tl.load(rotary_ptr + slot * 64 + turned))


@triton.jit(do_not_specialize=["num_keys"])  # type: ignore[untyped-decorator,unused-ignore]
def _unpage_rows(  # type: ignore[no-untyped-def]
    latent_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    rotary_ptr,  # noqa: ANN001
    pages_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    out_scale_ptr,  # noqa: ANN001
    out_rotary_ptr,  # noqa: ANN001
    num_keys,  # noqa: ANN001
) -> None:
    page = tl.program_id(0)
    token = tl.arange(0, 64)[:, None]
    slot = tl.load(pages_ptr + page).to(tl.int64) * 64 + token
    key = page * 64 + token
    inside = key < num_keys
    dims = tl.arange(0, 512)[None, :]
    tl.store(out_ptr + key * 512 + dims, tl.load(latent_ptr + slot * 512 + dims), mask=inside)
    group = tl.arange(0, 4)[None, :]
    tl.store(out_scale_ptr + group * num_keys + key, tl.load(scale_ptr + slot * 4 + group), mask=inside)
    turned = tl.arange(0, 64)[None, :]
    tl.store(out_rotary_ptr + key * 64 + turned, tl.load(rotary_ptr + slot * 64 + turned), mask=inside)
