"""The lightning indexer: which past tokens a query may see.

I[q, s] = sum over heads of w[q, h] * ReLU(q[h] . k[s]); the topk largest are kept, ties to the lowest
position. DeepSeek-V3.2, section 2.1; its inference code multiplies by constants, which chooses nothing.
Knows nothing of attention.

Letters: Q queries  H index heads  I index dims  L keys  J chosen  S cache slots  P pages
         B = Q, or 1 when all queries share one sequence's keys
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat

import torch
from torch import Tensor

from kernels.topk import topk_lowest
from model.batch import QueryGroup
from model.cache import PAGE_TOKENS, pages_of

TILE_VALUES = 1 << 18  # of keys, a megabyte: these and their matches stay in a core's cache


def choose_slots(
    query_QHI: Tensor, head_weights_QH: Tensor, index_SI: Tensor, group: QueryGroup, topk: int
) -> Tensor:
    """Cache slots of the topk best keys of each query, in order of position; int64 [Q, topk].

    Every query of the group must see more than topk keys.
    """
    scores_QL = index_scores(query_QHI, head_weights_QH, index_SI, group.pages_BP)
    chosen_QJ = topk_lowest(scores_QL.masked_fill_(group.hidden_QL, float("-inf")), topk)
    return group.slots_BL.expand(len(query_QHI), -1).gather(1, chosen_QJ)


def index_scores(query_QHI: Tensor, head_weights_QH: Tensor, index_SI: Tensor, pages_BP: Tensor) -> Tensor:
    """I[q, s] of every key in these pages, fp32 [Q, L].

    By tiles of keys, and in each for few queries at a time, which changes no bit of a batched product.
    """
    tile = tile_pages(index_SI.shape[1])
    if pages_BP.shape[1] > tile:
        tiles = torch.split(pages_BP, tile, 1)
        return torch.cat([index_scores(query_QHI, head_weights_QH, index_SI, own_BP) for own_BP in tiles], 1)
    few = tile // pages_BP.shape[1]
    if len(query_QHI) <= few:
        return _weigh(query_QHI, head_weights_QH, _keys(index_SI, pages_BP))
    if len(pages_BP) == 1:
        keys: Iterable[Tensor] = repeat(_keys(index_SI, pages_BP))
    else:
        keys = (_keys(index_SI, own_BP) for own_BP in torch.split(pages_BP, few))
    parts = zip(torch.split(query_QHI, few), torch.split(head_weights_QH, few), keys, strict=False)
    return torch.cat([_weigh(*part) for part in parts])


def tile_pages(index_dims: int) -> int:
    return max(1, TILE_VALUES // (PAGE_TOKENS * index_dims))


def _keys(index_SI: Tensor, pages_BP: Tensor) -> Tensor:
    """fp32 [B, I, L]"""
    return pages_of(index_SI, pages_BP).float().transpose(1, 2)


def _weigh(query_QHI: Tensor, head_weights_QH: Tensor, keys_BIL: Tensor) -> Tensor:
    match_QHL = torch.bmm(query_QHI.float(), keys_BIL.expand(len(query_QHI), -1, -1)).relu_()
    return torch.bmm(head_weights_QH.float()[:, None], match_QHL)[:, 0]
