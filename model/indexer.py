"""The lightning indexer: which past tokens a query may see.

I[q, s] = sum over heads of w[q, h] * ReLU(q[h] . k[s]); the topk largest are kept, ties to the lowest
position. DeepSeek-V3.2, section 2.1; constants index_heads^-0.5 and index_dims^-0.5 as in its inference code.
Knows nothing of attention.

Letters: Q queries  H index heads  I index dims  L keys  J chosen  S cache slots  P pages
         B = Q, or 1 when all queries share one sequence's keys
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.topk import topk_lowest
from model.batch import QueryGroup
from model.cache import PAGE_TOKENS

# What is made of so many keys and queries stays in a core's cache (docs/decisions/011-index-keys-by-tiles.md).
TILE_PAGES = 128
TILE_QUERIES = 2


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
    """I[q, s] of every key in these pages, fp32 [Q, L]."""
    num_queries, heads, dims = query_QHI.shape
    query_QHI = query_QHI.float()
    weights_Q1H = head_weights_QH.float().mul(heads**-0.5 * dims**-0.5)[:, None]
    scores_Q1L = query_QHI.new_empty(num_queries, 1, pages_BP.shape[1] * PAGE_TOKENS)
    scored = 0
    for keys_BLI in _tiles(index_SI, pages_BP):
        own = slice(scored, scored + keys_BLI.shape[1])
        keys_QIL = keys_BLI.float().transpose(1, 2).expand(num_queries, -1, -1)
        for first in range(0, num_queries, TILE_QUERIES):
            few = slice(first, first + TILE_QUERIES)
            match_QHL = torch.bmm(query_QHI[few], keys_QIL[few]).relu_()
            torch.bmm(weights_Q1H[few], match_QHL, out=scores_Q1L[few, :, own])
        scored = own.stop
    return scores_Q1L[:, 0]


def _tiles(index_SI: Tensor, pages_BP: Tensor) -> Iterator[Tensor]:
    """The keys of TILE_PAGES pages at a time, [B, L, I]; the next overwrite them."""
    index_dims = index_SI.shape[1]
    paged_PX = index_SI.view(-1, PAGE_TOKENS * index_dims)
    place_PX: Tensor | None = None
    for first in range(0, pages_BP.shape[1], TILE_PAGES):
        tile_P = pages_BP[:, first : first + TILE_PAGES].reshape(-1)
        place_PX = place_PX if place_PX is None else place_PX[: len(tile_P)]
        place_PX = torch.index_select(paged_PX, 0, tile_P, out=place_PX)
        yield place_PX.view(len(pages_BP), -1, index_dims)
