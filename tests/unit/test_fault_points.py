"""Fault points are where their names say, and are passed unless they are armed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.fault_points import POINTS, FaultPoint, arm, end_at
from actors.held import HeldExperts
from cluster.fleet import Fleet
from router.listener import Listener
from router.tcp import TcpTransport

PARTS = {"held": HeldExperts, "listener": Listener, "transport": TcpTransport, "fleet": Fleet}


class Part:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def take(self, number: int) -> int:
        self.seen.append(number)
        return -number


class Ended(Exception):  # noqa: N818
    """In place of the end of the process."""


def end() -> None:
    raise Ended


@pytest.mark.parametrize("name", POINTS)
def test_every_point_is_a_call_that_its_part_has(name: str):
    assert callable(getattr(PARTS[POINTS[name].part], POINTS[name].method))


def test_a_point_that_a_process_does_not_have_is_refused_with_those_that_it_has():
    for name in ("token-drawn", "nowhere"):
        with pytest.raises(ValueError, match=re.escape(f"{name!r}: not known here; known: rows-received,")):
            arm({"held": Part()}, name, 1)


@given(
    numbers=st.lists(st.integers(-5, 5), max_size=20),
    passes=st.integers(1, 5),
    is_after=st.booleans(),
)
def test_the_end_comes_at_the_pass_that_was_asked_for_and_only_calls_that_count_are_passes(
    numbers: list[int], passes: int, is_after: bool
):
    counted = [place for place, number in enumerate(numbers) if number > 0]
    last = counted[passes - 1] if len(counted) >= passes else None
    part, returned = Part(), []
    point = FaultPoint(
        part="part",
        method="take",
        is_after=is_after,
        counts=lambda arguments, answer: arguments[0] > 0 and answer == (-arguments[0] if is_after else None),
    )
    end_at(part, point, passes, end)
    try:
        for number in numbers:
            returned.append(part.take(number))
        assert last is None
    except Ended:
        assert last is not None
    whole = numbers if last is None else numbers[:last]
    assert returned == [-number for number in whole]
    assert part.seen == numbers[: len(whole) + (is_after and last is not None)]
