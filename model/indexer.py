"""The lightning indexer: which past tokens a query may see.

I[q, s] = sum over heads of w[q, h] * ReLU(q[h] . k[s]); the topk largest are kept, ties to the lowest
position. DeepSeek-V3.2, section 2.1; constants index_heads^-0.5 and index_dims^-0.5 as in its inference code.
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

TILE_PAGES = 64  # keys of so many pages, and their matches, stay in a core's cache


def choose_slots(
    query_QHI: Tensor, head_weights_QH: Tensor, index_SI: Tensor, group: QueryGroup, topk: int
) -> Tensor:
    """Cache slots of the topk best keys of each query, in order of position; int64 [Q, topk].

    Every query of the group must see more than topk keys.
    """
    scores_QL = index_scores(query_QHI, head_weights_QH, index_SI, group.pages_BP)
    chosen_QJ = topk_lowest(scores_QL.masked_fill_(group.hidden_QL, float("-inf")), topk)
    pages_QJ = group.pages_BP.expand(len(query_QHI), -1).gather(1, chosen_QJ // PAGE_TOKENS)
    return pages_QJ * PAGE_TOKENS + chosen_QJ % PAGE_TOKENS


def index_scores(query_QHI: Tensor, head_weights_QH: Tensor, index_SI: Tensor, pages_BP: Tensor) -> Tensor:
    """I[q, s] of every key in these pages, fp32 [Q, L], a tile after the other."""
    heads, dims = query_QHI.shape[1:]
    weights_Q1H = head_weights_QH.float().mul(heads**-0.5 * dims**-0.5)[:, None]
    query_QHI = query_QHI.float()
    tiles = torch.split(pages_BP, TILE_PAGES, 1)
    return torch.cat([_tile_scores(query_QHI, weights_Q1H, index_SI, tile_BP) for tile_BP in tiles], 1)


def _tile_scores(query_QHI: Tensor, weights_Q1H: Tensor, index_SI: Tensor, pages_BP: Tensor) -> Tensor:
    """The same of few keys, and for few queries at a time: how many changes no bit of a batched product."""
    few = max(1, TILE_PAGES // pages_BP.shape[1])
    if len(pages_BP) == 1:
        keys: Iterable[Tensor] = repeat(pages_of(index_SI, pages_BP).float())
    else:
        keys = (pages_of(index_SI, own_BP).float() for own_BP in torch.split(pages_BP, few))
    parts = zip(torch.split(query_QHI, few), torch.split(weights_Q1H, few), keys, strict=False)
    return torch.cat([_weigh(query_QHI, weights_Q1H, keys_BLI) for query_QHI, weights_Q1H, keys_BLI in parts])


def _weigh(query_QHI: Tensor, weights_Q1H: Tensor, keys_BLI: Tensor) -> Tensor:
    keys_QIL = keys_BLI.transpose(1, 2).expand(len(query_QHI), -1, -1)
    return torch.bmm(weights_Q1H, torch.bmm(query_QHI, keys_QIL).relu_())[:, 0]
