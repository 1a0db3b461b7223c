"""Indexer logits from the paged FP8 index cache.

logit[t, s] = key scale[s] * sum over heads of w[t, h] * ReLU(q[t, h] . k[s]); scales of queries and
softmax are folded into w before. Decode: queries of many sequences, each over its own pages. Prefill: queries
of one sequence, each over the keys up to its own. Each logit is one program's own sum: its bits depend on
nothing else. Knows nothing of what is chosen by them.

Letters: T queries  H index heads  I index dims  L columns of logits  S cache slots  P pages of a sequence
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sparse_mla import check_tensor

PAGE_TOKENS = 64  # as model.cache has it; kernels know no model
INDEX_HEADS = 64
INDEX_DIMS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexCache:
    """One layer's index keys: E4M3 [S, I] and their scales, fp32 [S]. S = pages * 64."""

    key_SI: Tensor
    scale_S: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """A program takes `tiles` tiles of block_keys keys of one query."""

    block_keys: int
    tiles: int
    num_warps: int = 4
    num_stages: int = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillConfig:
    """A program holds one tile of keys and takes block_queries queries one after the other."""

    block_keys: int
    block_queries: int
    num_warps: int = 4
    num_stages: int = 3


# Of at most this many queries and columns, as measured on an H200; the first that holds both. All give the
# same bits.
DECODE = (
    (4, 1 << 16, DecodeConfig(block_keys=128, tiles=1, num_stages=5)),
    (4, 1 << 30, DecodeConfig(block_keys=128, tiles=2)),
    (1 << 30, 1 << 13, DecodeConfig(block_keys=128, tiles=4, num_stages=3)),
    (1 << 30, 1 << 30, DecodeConfig(block_keys=64, tiles=16, num_stages=5)),
)
PREFILL = PrefillConfig(block_keys=128, block_queries=64)


def decode_config_for(num_queries: int, max_pages: int) -> DecodeConfig:
    """For pages_TP of this shape."""
    columns = max_pages * PAGE_TOKENS
    return next(config for queries, most, config in DECODE if num_queries <= queries and columns <= most)


def index_logits_decode(
    query_THI: Tensor,
    weight_TH: Tensor,
    cache: IndexCache,
    pages_TP: Tensor,
    lengths_T: Tensor,
    *,
    config: DecodeConfig,
) -> Tensor:
    """fp32 [T, P * 64]; at and after a row's length the memory stays as it was allocated.

    query_THI: E4M3 [T, 64, 128]. weight_TH: fp32. pages_TP: int32, page numbers of each query's sequence;
    what lies after the length is not read. lengths_T: int32, keys that each query sees.
    """
    num_queries, max_pages = pages_TP.shape
    _check(query_THI, weight_TH, cache)
    check_tensor("pages_TP", pages_TP, torch.int32, (len(query_THI), max_pages), query_THI.device)
    check_tensor("lengths_T", lengths_T, torch.int32, (num_queries,), query_THI.device)
    logits_TL = weight_TH.new_empty(num_queries, max_pages * PAGE_TOKENS)
    columns = triton.cdiv(logits_TL.shape[1], config.block_keys * config.tiles)
    if logits_TL.numel():
        index_logits_decode_kernel[(columns, num_queries)](
            query_THI,
            weight_TH,
            cache.key_SI,
            cache.scale_S,
            pages_TP,
            lengths_T,
            logits_TL,
            max_pages,
            BLOCK_N=config.block_keys,
            TILES=config.tiles,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return logits_TL


def index_logits_prefill(
    query_THI: Tensor,
    weight_TH: Tensor,
    cache: IndexCache,
    pages_P: Tensor,
    *,
    first_length: int,
    config: PrefillConfig = PREFILL,
) -> Tensor:
    """fp32 [T, P * 64] of one sequence's queries; query t sees first_length + t keys, the rest is unwritten.

    pages_P: int32, the sequence's page numbers in order; contiguous keys are pages 0, 1, 2, ...
    """
    num_queries, max_pages = len(query_THI), len(pages_P)
    _check(query_THI, weight_TH, cache)
    check_tensor("pages_P", pages_P, torch.int32, (max_pages,), query_THI.device)
    logits_TL = weight_TH.new_empty(num_queries, max_pages * PAGE_TOKENS)
    if not 0 <= first_length <= logits_TL.shape[1] - max(0, num_queries - 1):
        raise ValueError(
            f"first_length is {first_length} with {num_queries} queries: the last one sees more than the "
            f"{logits_TL.shape[1]} keys of {max_pages} pages; pass all pages of the sequence"
        )
    if logits_TL.numel():
        columns = triton.cdiv(logits_TL.shape[1], config.block_keys)
        index_logits_prefill_kernel[(triton.cdiv(num_queries, config.block_queries), columns)](
            query_THI,
            weight_TH,
            cache.key_SI,
            cache.scale_S,
            pages_P,
            logits_TL,
            num_queries,
            first_length,
            max_pages,
            BLOCK_N=config.block_keys,
            BLOCK_Q=config.block_queries,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    return logits_TL


def index_logits_reference(
    query_THI: Tensor, weight_TH: Tensor, cache: IndexCache, pages_TP: Tensor, lengths_T: Tensor
) -> Tensor:
    """The definition, fp64 [T, P * 64]; NaN at and after a row's length."""
    offset = torch.arange(PAGE_TOKENS, device=pages_TP.device)
    logits_TL = weight_TH.new_full((len(pages_TP), pages_TP.shape[1] * PAGE_TOKENS), torch.nan).double()
    for query_HI, weight_H, pages_P, length, logits_L in zip(
        query_THI.double(), weight_TH.double(), pages_TP, lengths_T.tolist(), logits_TL, strict=True
    ):
        slots_L = (pages_P.long()[:, None] * PAGE_TOKENS + offset).flatten()[:length]
        match_HL = (query_HI @ cache.key_SI[slots_L].double().T).relu()
        logits_L[:length] = weight_H @ match_HL * cache.scale_S[slots_L].double()
    return logits_TL


def _check(query_THI: Tensor, weight_TH: Tensor, cache: IndexCache) -> None:
    num_queries, num_slots = len(query_THI), len(cache.key_SI)
    for name, tensor, dtype, shape in (
        ("query_THI", query_THI, torch.float8_e4m3fn, (num_queries, INDEX_HEADS, INDEX_DIMS)),
        ("weight_TH", weight_TH, torch.float32, (num_queries, INDEX_HEADS)),
        ("key_SI", cache.key_SI, torch.float8_e4m3fn, (num_slots, INDEX_DIMS)),
        ("scale_S", cache.scale_S, torch.float32, (num_slots,)),
    ):
        check_tensor(name, tensor, dtype, shape, query_THI.device)


@triton.jit(do_not_specialize=["max_pages"])  # type: ignore[untyped-decorator,unused-ignore]
def index_logits_decode_kernel(
    query_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    key_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    logits_ptr: tl.tensor,
    max_pages: tl.int32,
    BLOCK_N: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    row = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * (BLOCK_N * TILES)
    length = tl.load(lengths_ptr + row)
    if first >= length:
        return
    head_H, dims = tl.arange(0, 64), tl.arange(0, 128)
    query_IH = tl.load(query_ptr + row * (64 * 128) + head_H[None, :] * 128 + dims[:, None])
    weight_H = tl.load(weight_ptr + row * 64 + head_H)
    pages_ptr += row * max_pages
    logits_ptr += row * max_pages * 64
    for start in tl.range(first, tl.minimum(first + BLOCK_N * TILES, length), BLOCK_N):
        at_N = start + tl.arange(0, BLOCK_N)
        is_key_N = at_N < length
        if BLOCK_N == 64:  # one page, one number to wait for
            slot_N = tl.load(pages_ptr + start // 64).to(tl.int64) * 64 + tl.arange(0, 64)
        else:
            page_N = tl.load(pages_ptr + at_N // 64, mask=is_key_N, other=0)
            slot_N = page_N.to(tl.int64) * 64 + at_N % 64
        key_NI = tl.load(key_ptr + slot_N[:, None] * 128 + dims[None, :])
        scale_N = tl.load(scale_ptr + slot_N)
        match_NH = tl.maximum(tl.dot(key_NI, query_IH), 0.0)
        logit_N = tl.sum(match_NH * weight_H[None, :], 1) * scale_N
        tl.store(logits_ptr + at_N, logit_N, mask=is_key_N)


@triton.jit(do_not_specialize=["num_queries", "first_length", "max_pages"])  # type: ignore[untyped-decorator,unused-ignore]
def index_logits_prefill_kernel(
    query_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    key_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    logits_ptr: tl.tensor,
    num_queries: tl.int32,
    first_length: tl.int32,
    max_pages: tl.int32,
    BLOCK_N: tl.constexpr,
    BLOCK_Q: tl.constexpr,
) -> None:
    first_query, start = tl.program_id(0) * BLOCK_Q, tl.program_id(1) * BLOCK_N
    end_query = tl.minimum(first_query + BLOCK_Q, num_queries)
    seen = first_length + end_query - 1  # by the last of these queries
    if start >= seen:
        return
    head_H, dims = tl.arange(0, 64), tl.arange(0, 128)
    at_N = start + tl.arange(0, BLOCK_N)
    page_N = tl.load(pages_ptr + at_N // 64, mask=at_N < seen, other=0)
    slot_N = page_N.to(tl.int64) * 64 + at_N % 64
    key_NI = tl.load(key_ptr + slot_N[:, None] * 128 + dims[None, :])
    scale_N = tl.load(scale_ptr + slot_N)
    first_query = tl.maximum(first_query, start - first_length + 1)  # the first that sees any of these keys
    at_IH = head_H[None, :] * 128 + dims[:, None]
    stride = max_pages.to(tl.int64) * 64
    for query in tl.range(first_query, end_query):
        query_IH = tl.load(query_ptr + query * (64 * 128) + at_IH)
        weight_H = tl.load(weight_ptr + query * 64 + head_H)
        match_NH = tl.maximum(tl.dot(key_NI, query_IH), 0.0)
        logit_N = tl.sum(match_NH * weight_H[None, :], 1) * scale_N
        tl.store(logits_ptr + query * stride + at_N, logit_N, mask=at_N < first_length + query)
