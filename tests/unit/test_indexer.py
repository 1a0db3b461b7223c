"""The indexer's choice: the definition's, and the same bits in any company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.batch import NULL_PAGE, Chunk, QueryGroup, build_batch
from model.cache import PAGE_TOKENS, pages_of
from model.indexer import choose_slots, index_scores, tile_pages

HEADS, DIMS = 16, 64
TILE_PAGES = tile_pages(DIMS)
POOL = 4 * TILE_PAGES
QUERIES, TOPK = 5, 32
NUM_PAGES = (1, 7, TILE_PAGES, TILE_PAGES + 1, 2 * TILE_PAGES + 24)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def index_SI() -> Tensor:
    """Keys of a whole pool; the null page is zero, as nothing reads what is written there."""
    keys = drawn(POOL * PAGE_TOKENS, DIMS)
    keys[NULL_PAGE * PAGE_TOKENS : (NULL_PAGE + 1) * PAGE_TOKENS] = 0.0
    return keys


def shuffled(num_pages: int, seed: int) -> Tensor:
    """Pages of one sequence, [1, num_pages]."""
    generator = torch.Generator().manual_seed(seed)
    return 1 + torch.randperm(POOL - 1, generator=generator)[None, :num_pages]


def by_definition(query_HI: Tensor, weights_H: Tensor, keys_LI: Tensor) -> Tensor:
    match_HL = torch.relu(query_HI.double() @ keys_LI.double().T)
    return (weights_H.double()[:, None] * match_HL).sum(0)


@pytest.mark.parametrize("num_pages", NUM_PAGES)
def test_a_querys_scores_are_the_definition_alone_beside_others_and_on_shared_pages(index_SI, num_pages):
    query_QHI, weights_QH = drawn(QUERIES, HEADS, DIMS), drawn(QUERIES, HEADS)
    pages_QP = torch.cat([shuffled(num_pages, seed) for seed in range(QUERIES)])
    together_QL = index_scores(query_QHI, weights_QH, index_SI, pages_QP)
    for i in range(QUERIES):
        own = slice(i, i + 1)
        alone_1L = index_scores(query_QHI[own], weights_QH[own], index_SI, pages_QP[own])
        sharing_QL = index_scores(query_QHI, weights_QH, index_SI, pages_QP[own])
        assert torch.equal(together_QL[i], alone_1L[0])
        assert torch.equal(sharing_QL[i], alone_1L[0])
        keys_LI = pages_of(index_SI, pages_QP[own])[0]
        expected_L = by_definition(query_QHI[i], weights_QH[i], keys_LI)
        # fp32 sums of 16 x 64 products of size 1.
        torch.testing.assert_close(alone_1L[0].double(), expected_L, rtol=1e-5, atol=1e-3)


def test_scores_do_not_depend_on_which_pages_hold_the_keys(index_SI):
    """A sequence that was sent back, or shares a prefix, finds its past elsewhere."""
    here, there = shuffled(2 * TILE_PAGES - 3, seed=1), shuffled(2 * TILE_PAGES - 3, seed=2)
    moved_SI = torch.zeros_like(index_SI)
    paged = moved_SI.view(POOL, PAGE_TOKENS, DIMS)
    paged[there[0]] = pages_of(index_SI, here).view(-1, PAGE_TOKENS, DIMS)
    query_QHI, weights_QH = drawn(QUERIES, HEADS, DIMS), drawn(QUERIES, HEADS)
    before = index_scores(query_QHI, weights_QH, index_SI, here)
    assert torch.equal(index_scores(query_QHI, weights_QH, moved_SI, there), before)


def group_of(num_tokens: int, pages: Tensor) -> QueryGroup:
    """The one query after num_tokens - 1 others."""
    chunk = Chunk(token_ids=[1], start=num_tokens - 1, pages=pages[0].tolist(), wants_logits=True)
    [group] = build_batch([chunk], index_topk=TOPK).groups
    return group


def chosen_positions(index_SI: Tensor, num_tokens: int, pages: Tensor) -> list[int]:
    slots = choose_slots(drawn(1, HEADS, DIMS), drawn(1, HEADS), index_SI, group_of(num_tokens, pages), TOPK)
    page_of = {page: place for place, page in enumerate(pages[0].tolist())}
    return [page_of[slot // PAGE_TOKENS] * PAGE_TOKENS + slot % PAGE_TOKENS for slot in slots[0].tolist()]


@pytest.mark.parametrize("num_tokens", [TOPK + 1, 500, TILE_PAGES * PAGE_TOKENS + 9])
def test_the_best_of_the_past_are_chosen_in_order_of_position(index_SI, num_tokens):
    pages = shuffled(-(-num_tokens // PAGE_TOKENS), seed=3)
    scores_L = by_definition(drawn(1, HEADS, DIMS)[0], drawn(1, HEADS)[0], pages_of(index_SI, pages)[0])
    best = torch.topk(scores_L[:num_tokens], TOPK).indices.sort().values
    assert chosen_positions(index_SI, num_tokens, pages) == best.tolist()


def test_of_equal_keys_the_first_are_chosen_and_none_from_after_the_query(index_SI):
    equal_SI = torch.ones_like(index_SI)
    pages = shuffled(TILE_PAGES + 2, seed=4)
    num_tokens = (TILE_PAGES + 1) * PAGE_TOKENS + 5
    assert chosen_positions(equal_SI, num_tokens, pages) == list(range(TOPK))


def test_what_is_after_the_query_is_not_chosen_even_where_it_is_no_number(index_SI):
    """A draft that was refused may have left NaN in the slots to be written next."""
    pages, num_tokens = shuffled(9, seed=5), 520
    spoiled_SI = index_SI.clone()
    last = int(pages[0, -1]) * PAGE_TOKENS
    spoiled_SI[last + num_tokens % PAGE_TOKENS : last + PAGE_TOKENS] = float("nan")
    assert chosen_positions(spoiled_SI, num_tokens, pages) == chosen_positions(index_SI, num_tokens, pages)
