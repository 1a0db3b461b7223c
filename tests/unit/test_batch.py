"""The tokens of a step: each once, in its slot, seeing its own past and nothing else."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.rows import ROW_MULTIPLE
from model.batch import (
    MOST_PADDING,
    NULL_PAGE,
    Batch,
    Chunk,
    build_batch,
    halve,
    logit_places,
    padded_keys,
)
from model.cache import PAGE_TOKENS


def test_padded_keys_are_whole_pages_never_fewer_and_waste_at_most_a_quarter_and_little_when_long():
    previous = 0
    for num_keys in range(1, 70_000):
        padded = padded_keys(num_keys)
        assert padded >= num_keys
        assert padded >= previous, "more keys, less room"
        assert padded % PAGE_TOKENS == 0
        assert padded - num_keys < PAGE_TOKENS or padded <= 1.25 * num_keys
        assert padded - num_keys < MOST_PADDING
        previous = padded


def test_padded_keys_come_in_few_sizes():
    """Queries share a group only when their sizes agree: four sizes per doubling."""
    sizes = {padded_keys(num_keys) for num_keys in range(4097, 8193)}
    assert len(sizes) == 4


@st.composite
def steps(draw: st.DrawFn) -> list[Chunk]:
    """Chunks of different sequences, decode and prefill mixed, on shuffled pages."""
    lengths = draw(
        st.lists(
            st.tuples(st.integers(0, 400), st.one_of(st.just(1), st.integers(1, 150)), st.booleans()),
            min_size=1,
            max_size=8,
        )
    )
    counts = [-(-(start + count + draw(st.integers(0, 70))) // PAGE_TOKENS) for start, count, _ in lengths]
    pages = list(range(1, sum(counts) + 1))
    Random(draw(st.integers(0, 99))).shuffle(pages)
    chunks, token = [], 0
    for (start, count, wants_logits), num_pages in zip(lengths, counts, strict=True):
        ids = list(range(1000 + token, 1000 + token + count))  # every token of the step is distinct
        token += count
        own, pages = pages[:num_pages], pages[num_pages:]
        chunks.append(Chunk(token_ids=ids, start=start, pages=own, wants_logits=wants_logits))
    return chunks


def slot(chunk: Chunk, position: int) -> int:
    return chunk.pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS


def rows_of(batch: Batch) -> dict[int, int]:
    """Row by token id."""
    ids = batch.token_ids_T[: batch.num_tokens].tolist()
    assert len(set(ids)) == len(ids)
    return {token: row for row, token in enumerate(ids)}


@settings(max_examples=30, deadline=None)
@given(steps(), st.sampled_from([None, 32, 200]))
def test_every_token_is_there_once_at_its_position_and_slot(chunks: list[Chunk], topk: int | None):
    batch = build_batch(chunks, index_topk=topk)
    rows = rows_of(batch)
    assert sorted(rows) == sorted(token for chunk in chunks for token in chunk.token_ids)
    assert batch.num_tokens == len(rows)
    positions, slots = batch.positions_T.tolist(), batch.slots_T.tolist()
    for chunk in chunks:
        for position, token in enumerate(chunk.token_ids, chunk.start):
            assert positions[rows[token]] == position
            assert slots[rows[token]] == slot(chunk, position)


@settings(max_examples=30, deadline=None)
@given(steps(), st.sampled_from([None, 32, 200]))
def test_padding_rows_write_to_the_null_page_and_no_slot_is_written_twice(chunks, topk):
    batch = build_batch(chunks, index_topk=topk)
    assert len(batch.token_ids_T) == len(batch.positions_T) == len(batch.slots_T)
    assert len(batch.token_ids_T) % ROW_MULTIPLE == 0
    assert len(batch.token_ids_T) - batch.num_tokens < ROW_MULTIPLE
    assert (batch.slots_T[batch.num_tokens :] // PAGE_TOKENS == NULL_PAGE).all()
    assert len(set(batch.slots_T.tolist())) == len(batch.slots_T)


@settings(max_examples=25, deadline=None)
@given(steps(), st.sampled_from([None, 32, 200]))
def test_a_query_sees_its_own_sequence_up_to_itself_and_nothing_else(chunks, topk):
    batch = build_batch(chunks, index_topk=topk)
    of_token = {
        token: (chunk, chunk.start + i) for chunk in chunks for i, token in enumerate(chunk.token_ids)
    }
    seen_rows: list[int] = []
    for group in batch.groups:
        rows = range(group.rows.start, group.rows.stop)
        seen_rows += rows
        num_keys = group.pages_BP.shape[1] * PAGE_TOKENS
        slots_QL = group.slots_BL.expand(len(rows), -1)
        assert group.hidden_QL.shape == slots_QL.shape == (len(rows), num_keys)
        assert torch.equal(group.bias_Q1L[:, 0] == float("-inf"), group.hidden_QL)
        assert (group.bias_Q1L[:, 0][~group.hidden_QL] == 0).all()
        for query, row in enumerate(rows):
            chunk, position = of_token[int(batch.token_ids_T[row])]
            visible = slots_QL[query][~group.hidden_QL[query]].tolist()
            assert visible == [slot(chunk, p) for p in range(position + 1)]
            assert group.num_keys_Q[query] == position + 1
            # The shape of the reduction is a matter of the position alone.
            assert num_keys == padded_keys(position + 1)
            assert group.sparse == (topk is not None and position + 1 > topk)
    assert sorted(seen_rows) == list(range(batch.num_tokens))


@settings(max_examples=30, deadline=None)
@given(steps(), st.sampled_from([None, 32]))
def test_logits_come_for_the_last_token_of_those_who_want_them_in_the_order_given(chunks, topk):
    batch, places = build_batch(chunks, index_topk=topk), logit_places(chunks)
    wanted = [chunk.token_ids[-1] for chunk in chunks if chunk.wants_logits]
    given = batch.token_ids_T[batch.rows_N]
    assert given.tolist() == [token for chunk in chunks for token in chunk.token_ids]
    assert given[places].tolist() == wanted
    assert places.dtype == torch.int64


@settings(max_examples=50, deadline=None)
@given(steps())
def test_halves_hold_every_token_once_in_order_where_it_was_and_logits_are_wanted_once(chunks):
    first, second = halve(chunks)
    sizes = [sum(len(chunk.token_ids) for chunk in half) for half in (first, second)]
    assert abs(sizes[0] - sizes[1]) <= 2 * ROW_MULTIPLE

    def tokens_of(some: list[Chunk]) -> list[tuple[int, int, tuple[int, ...]]]:
        return [
            (token, position, tuple(chunk.pages))
            for chunk in some
            for position, token in enumerate(chunk.token_ids, chunk.start)
        ]

    assert tokens_of([*first, *second]) == tokens_of(chunks)
    wanting = [
        [chunk.token_ids[-1] for chunk in some if chunk.wants_logits] for some in (chunks, [*first, *second])
    ]
    assert wanting[0] == wanting[1]
    assert all(chunk.token_ids for chunk in (*first, *second))


@pytest.mark.parametrize("start", [0, 63, 64, 127, 1000])
def test_a_single_token_and_the_same_token_in_a_chunk_meet_the_same_keys(start: int):
    pages = list(range(5, 40))
    alone = build_batch([Chunk(token_ids=[1], start=start, pages=pages, wants_logits=True)], index_topk=None)
    ids = list(range(start + 1))
    inside = build_batch([Chunk(token_ids=ids, start=0, pages=pages, wants_logits=True)], index_topk=None)
    own, last = alone.groups[0], inside.groups[-1]
    assert torch.equal(own.pages_BP, last.pages_BP)
    assert torch.equal(own.hidden_QL[0], last.hidden_QL[-1])
