"""Placement: everything held, copies apart, few slots written, and the load evened."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.placement import Held, Load, Room, adapt, imbalance, room_for, solve

SHARE = settings(max_examples=settings().max_examples // 2)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Load, int, Room]:
    """A layer's load, the number of actors, and room that is enough."""
    num_experts = draw(st.integers(1, 24))
    num_actors = draw(st.integers(1, 6))
    copies = draw(st.integers(1, num_actors))
    redundant = draw(st.integers(0, num_experts))
    load = draw(st.lists(st.integers(0, 50), min_size=num_experts, max_size=num_experts))
    return np.array(load, dtype=np.float64), num_actors, room_for(num_experts, num_actors, copies, redundant)


@st.composite
def in_use(draw: st.DrawFn, num_experts: int) -> Held:
    """Any table at all: of other numbers of actors and slots, with experts that nobody holds."""
    num_actors = draw(st.integers(1, 6))
    flat = draw(st.lists(st.booleans(), min_size=num_actors * num_experts, max_size=num_actors * num_experts))
    return np.array(flat, dtype=bool).reshape(num_actors, num_experts)


def check(held_AE: Held, room: Room) -> None:
    assert (held_AE.sum(1) <= room.num_slots).all()
    assert (held_AE.sum(0) >= room.min_copies).all()


def drifting(num_experts: int, exponent: float, seed: int, windows: int) -> list[Load]:
    """Zipf popularity whose logarithm wanders."""
    random = np.random.default_rng(seed)
    base = np.log(np.minimum(1 / np.arange(1, num_experts + 1) ** exponent, 1.0))[
        random.permutation(num_experts)
    ]
    noise, loads = np.zeros(num_experts), []
    for _ in range(windows):
        noise = 0.95 * noise + 0.15 * random.standard_normal(num_experts)
        loads.append(np.exp(base + noise))
    return loads


@SHARE
@given(case=cases())
def test_every_expert_has_its_copies_on_distinct_actors_and_no_actor_too_many(case: tuple[Load, int, Room]):
    load_E, num_actors, room = case
    check(solve(load_E, num_actors, room), room)


@SHARE
@given(data=st.data(), case=cases(), max_writes=st.integers(0, 8))
def test_whatever_is_held_can_be_adapted(data: st.DataObject, case: tuple[Load, int, Room], max_writes: int):
    load_E, num_actors, room = case
    before_AE = data.draw(in_use(len(load_E)))
    before_AE = np.resize(before_AE, (num_actors, len(load_E)))
    check(adapt(before_AE, load_E, room, max_writes), room)


@SHARE
@given(data=st.data(), case=cases(), max_writes=st.integers(0, 8))
def test_what_fits_is_changed_in_few_slots_and_never_for_the_worse(
    data: st.DataObject, case: tuple[Load, int, Room], max_writes: int
):
    load_E, num_actors, room = case
    before_AE = solve(data.draw(st.permutations(load_E.tolist()).map(np.array)), num_actors, room)
    free = num_actors * room.num_slots - int(before_AE.sum())
    after_AE = adapt(before_AE, load_E, room, max_writes)
    assert (after_AE & ~before_AE).sum() <= max_writes + free
    before, after = (held @ (load_E / held.sum(0)) for held in (before_AE, after_AE))
    assert (after**4).sum() <= (before**4).sum() * (1 + 1e-9)


@SHARE
@given(case=cases())
def test_a_load_that_has_not_changed_moves_nothing(case: tuple[Load, int, Room]):
    load_E, num_actors, room = case
    settled_AE = adapt(solve(load_E, num_actors, room), load_E, room, 1000)
    assert np.array_equal(adapt(settled_AE, load_E, room, 8), settled_AE)


@pytest.mark.parametrize("num_actors", [8, 16])
def test_few_writes_follow_a_drift_nearly_as_well_as_a_full_solve(num_actors: int):
    loads = drifting(128, 0.8, seed=num_actors, windows=12)
    room = room_for(128, num_actors, 1, 16)
    held_AE = solve(loads[0], num_actors, room)
    sticky, full = [], []
    for load_E, later_E in pairwise(loads):
        next_AE = adapt(held_AE, load_E, room, 8)
        assert (next_AE & ~held_AE).sum() <= 8
        held_AE = next_AE
        sticky.append(imbalance(held_AE, later_E))
        full.append(imbalance(solve(load_E, num_actors, room), later_E))
    assert np.mean(sticky) <= 1.05 * np.mean(full)


def test_twice_as_many_actors_each_take_half():
    load_E = np.ones(16)
    two_AE = solve(load_E, 2, room_for(16, 2, 1, 0))
    four_AE = adapt(np.vstack([two_AE, np.zeros((2, 16), dtype=bool)]), load_E, room_for(16, 4, 1, 0), 8)
    assert four_AE.sum(1).tolist() == [4, 4, 4, 4]
    assert (four_AE[:2] & ~two_AE).sum() == 0, "who was there only gives"


def test_room_that_is_not_there_is_said():
    with pytest.raises(ValueError, match="2 copies of each expert on distinct actors: there are 1"):
        solve(np.ones(4), 1, Room(num_slots=4, min_copies=2))
    with pytest.raises(ValueError, match="2 actors of 1 slots cannot hold 1 copies of 4 experts"):
        solve(np.ones(4), 2, Room(num_slots=1))
