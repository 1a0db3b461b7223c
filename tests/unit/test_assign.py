"""Which replica serves which row: always a live holder, always the same one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router.assign import assign
from router.view import NO_ACTOR


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, set[int]]:
    num_actors = draw(st.integers(1, 6))
    num_experts = draw(st.integers(1, 12))
    masks = draw(st.lists(st.integers(0, 2**num_actors - 1), min_size=num_experts, max_size=num_experts))
    holders = [{a for a in range(num_actors) if mask >> a & 1} for mask in masks]
    most = max(1, *map(len, holders))
    table = np.array(
        [sorted(own) + [NO_ACTOR] * (most - len(own)) for own in holders], dtype=np.int32
    ).reshape(num_experts, most)
    pairs = draw(st.lists(st.integers(0, num_experts - 1), max_size=60))
    lost = draw(st.sets(st.integers(0, num_actors - 1)))
    return np.array(pairs, dtype=np.int32), table, lost


def by_hand(pairs: np.ndarray, table: np.ndarray, lost: set[int]) -> list[int]:
    """Largest expert first (lowest id on a tie), to its least loaded live holder (lowest on a tie)."""
    rows = {int(e): int((pairs == e).sum()) for e in pairs}
    load = dict.fromkeys(range(64), 0)
    chosen = {}
    for expert in sorted(rows, key=lambda e: (-rows[e], e)):
        live = [int(a) for a in table[expert] if a != NO_ACTOR and a not in lost]
        if live:
            chosen[expert] = min(live, key=lambda a: (load[a], a))
            load[chosen[expert]] += rows[expert]
    return [chosen.get(int(e), NO_ACTOR) for e in pairs]


@settings(max_examples=40, deadline=None)
@given(cases())
def test_every_pair_goes_to_a_live_holder_or_to_nobody_if_none_lives(case):
    pairs, table, lost = case
    for expert, actor in zip(pairs, assign(pairs, table, lost), strict=True):
        live = {int(a) for a in table[expert]} - {NO_ACTOR} - lost
        assert actor in live if live else actor == NO_ACTOR


@settings(max_examples=40, deadline=None)
@given(cases())
def test_all_rows_of_one_expert_go_to_one_actor(case):
    pairs, table, lost = case
    actors = assign(pairs, table, lost)
    for expert in np.unique(pairs):
        assert len(np.unique(actors[pairs == expert])) == 1


@settings(max_examples=40, deadline=None)
@given(cases())
def test_experts_go_largest_first_to_the_least_loaded_holder(case):
    pairs, table, lost = case
    assert assign(pairs, table, lost).tolist() == by_hand(pairs, table, lost)


@settings(max_examples=40, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order_of_pairs_or_of_the_lost(case, random):
    pairs, table, lost = case
    order = list(range(len(pairs)))
    random.shuffle(order)
    shuffled = assign(pairs[order], table, sorted(lost, reverse=True))
    assert (shuffled == assign(pairs, table, lost)[order]).all()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_a_table_of_single_replicas_gives_the_same_choice_as_its_wide_form(case):
    pairs, table, lost = case
    single = np.ascontiguousarray(table[:, :1])
    wide = np.concatenate([single, np.full_like(single, NO_ACTOR)], axis=1)
    assert (assign(pairs, single, lost) == assign(pairs, wide, lost)).all()
    assert assign(pairs, single, lost).dtype == assign(pairs, wide, lost).dtype == np.int32


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(2, 5))
def test_where_everybody_holds_everything_the_load_is_within_grahams_bound(experts, num_actors):
    """List scheduling: no actor has more than the mean plus (1 - 1/m) of the largest expert."""
    pairs = np.array(experts, dtype=np.int32)
    table = np.tile(np.arange(num_actors, dtype=np.int32), (31, 1))
    load = np.bincount(assign(pairs, table), minlength=num_actors)
    largest = np.bincount(pairs).max()
    assert load.max() <= len(pairs) / num_actors + (1 - 1 / num_actors) * largest
