"""Who holds what: the table, the placement, and bytes that cannot lie."""

from __future__ import annotations

import math

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.view import NO_ACTOR, ActorId, Epoch, ExpertActor, View, even_placement, make_view


def actor(number: int) -> ExpertActor:
    return ExpertActor(actor_id=ActorId(f"expert-{number}"), incarnation=number + 1, host="h", port=1000)


@st.composite
def views(draw: st.DrawFn) -> View:
    num_experts = draw(st.integers(1, 12))
    num_layers = draw(st.integers(1, 4))
    layer = st.lists(st.integers(0, num_experts - 1), unique=True, max_size=num_experts).map(tuple)
    held = draw(st.lists(st.tuples(*[layer] * num_layers), max_size=5))
    return View(
        epoch=Epoch(draw(st.integers(0, 2**40))),
        num_experts=num_experts,
        first_layer=draw(st.integers(0, 3)),
        actors=tuple(actor(i) for i in range(len(held))),
        held=tuple(held),
    )


@settings(max_examples=40, deadline=None)
@given(views())
def test_bytes_and_back_is_the_same_view(view: View):
    again = View.from_bytes(view.to_bytes())
    assert again == view
    assert (again.replicas == view.replicas).all()


@settings(max_examples=40, deadline=None)
@given(views())
def test_the_table_names_exactly_the_holders_in_ascending_order(view: View):
    for number in range(view.num_layers):
        table = view.replicas_of(view.first_layer + number)
        for expert in range(view.num_experts):
            holders = [a for a, layers in enumerate(view.held) if expert in layers[number]]
            row = table[expert].tolist()
            assert row == holders + [NO_ACTOR] * (len(row) - len(holders))
    assert view.missing() == [
        (view.first_layer + number, expert)
        for number in range(view.num_layers)
        for expert in range(view.num_experts)
        if not any(expert in layers[number] for layers in view.held)
    ]


def test_in_a_view_without_actors_nobody_holds_anything():
    """The last expert actor's death is a view too: steps park on it."""
    view = make_view(2, [], {}, num_experts=4, first_layer=1, num_layers=3)
    assert view.replicas_of(3).tolist() == [[NO_ACTOR]] * 4
    assert View.from_bytes(view.to_bytes()) == view


def test_actors_missing_from_the_placement_hold_nothing():
    view = make_view(
        1, [actor(0), actor(1)], {ActorId("expert-0"): [2]}, num_experts=3, first_layer=0, num_layers=2
    )
    assert view.held == (((2,), (2,)), ((), ()))
    assert view.missing() == [(0, 0), (0, 1), (1, 0), (1, 1)]


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_an_even_placement_covers_every_expert_on_distinct_actors(experts: int, actors: int, replicas: int):
    if replicas > actors or actors > experts:
        with pytest.raises(ValueError, match=r"must be between|only"):
            even_placement(experts, actors, replicas)
        return
    placement = even_placement(experts, actors, replicas)
    assert len(placement) == actors
    for own in placement:
        assert list(own) == sorted(set(own))  # no expert twice on one actor
    for expert in range(experts):
        assert sum(expert in own for own in placement) == replicas
    sizes = [len(own) for own in placement]
    assert max(sizes) - min(sizes) <= replicas


@pytest.mark.parametrize(("actors", "replicas"), [(0, 1), (4, 0), (4, -1)])
def test_a_placement_without_actors_or_copies_is_refused(actors: int, replicas: int):
    with pytest.raises(ValueError, match="must be between"):
        even_placement(8, actors, replicas)


def parts(**changes: object) -> bytes:
    values = {
        "epoch": 1,
        "num_experts": 4,
        "first_layer": 1,
        "actors": [["a", 1, "h", 1], ["b", 1, "h", 2]],
        "held": [[[0, 1]], [[2, 3]]],
    }
    return msgpack.packb(list((values | changes).values()))


def test_the_example_that_the_hostile_ones_change_is_a_view():
    assert View.from_bytes(parts()).missing() == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x95" + b"\x91" * 5000,
        parts()[:-1],
        parts() + b"\x00",
        msgpack.packb(7),
        msgpack.packb([1, 2, 3]),
        msgpack.packb({"epoch": 1}),
        parts(epoch=math.inf),
        parts(epoch=math.nan),
        parts(epoch=None),
        parts(epoch="soon"),
        parts(num_experts=-1),
        parts(num_experts=0),
        parts(num_experts=2**40),
        parts(num_experts=2**63),
        parts(num_experts=math.inf),
        parts(first_layer=-1),
        parts(held=[[[0, 1]], [[2, 4]]]),
        parts(held=[[[0, 1]], [[2, -1]]]),
        parts(held=[[[0, 1]], [[2, 2**63]]]),
        parts(held=[[[0, 1]], [[2, math.inf]]]),
        parts(held=[[[0, 1]]]),
        parts(held=[[[0, 1]], []]),
        parts(held=[[0, 1], [2, 3]]),
        parts(held=7),
        parts(actors=[["a", 1, "h", 1], ["a", 2, "h", 2]]),  # one id, two places
        parts(actors=[["a", 1, "h"], ["b", 1, "h", 2]]),
        parts(actors=[["a", 1, "h", "port"], ["b", 1, "h", 2]]),
        parts(actors=[["a", math.inf, "h", 1], ["b", 1, "h", 2]]),
        parts(actors=3),
    ],
)
def test_bytes_that_are_no_view_are_a_value_error(data: bytes):
    with pytest.raises(ValueError, match=r"."):
        View.from_bytes(data)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_are_a_value_error(data: bytes):
    with pytest.raises(ValueError, match=r"."):
        View.from_bytes(data)


ATOMS = (
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
)
NESTED = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["epoch", "num_experts", "first_layer", "actors", "held"]), NESTED)
def test_any_value_in_any_place_is_a_view_or_a_value_error(name: str, value: object):
    try:
        view = View.from_bytes(parts(**{name: value}))
    except ValueError:
        return
    assert View.from_bytes(view.to_bytes()) == view
