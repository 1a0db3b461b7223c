"""A lane is written by one life at a time, and read again only when that one is surely gone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.lanes import Lanes, LanesTaken, Life

COUNT = 3
DEEDS = st.lists(st.tuples(st.sampled_from(["open", "lose", "bury"]), st.integers(0, 7)), max_size=40)


def life(number: int) -> Life:
    return Life(actor=f"x{number % 4}", incarnation=number // 4)


@given(DEEDS)
def test_no_lane_has_two_writers_that_may_still_write(deeds: list[tuple[str, int]]) -> None:
    lanes = Lanes(COUNT, first=1)
    may_write: dict[int, Life] = {}  # as a model: whoever was let in and is not dead
    had_one: set[Life] = set()
    lost: set[Life] = set()
    for deed, number in deeds:
        one = life(number)
        if deed == "open" and one in had_one:
            with pytest.raises(ValueError, match="a new life"):
                lanes.open(one)
        elif deed == "open" and len(may_write) == COUNT:
            with pytest.raises(LanesTaken):
                lanes.open(one)
        elif deed == "open":
            lane = lanes.open(one)
            assert 1 <= lane <= COUNT
            assert lane not in may_write, "somebody else may still write there"
            may_write[lane] = one
            had_one.add(one)
        elif deed == "lose":
            lanes.lose(one)
            lost |= {one} & set(may_write.values())
        else:
            lanes.bury(one)
            may_write = {lane: other for lane, other in may_write.items() if other != one}
        assert lanes.live == {other: lane for lane, other in may_write.items() if other not in lost}


def test_a_lost_life_keeps_its_lane_until_it_is_buried() -> None:
    lanes = Lanes(1)
    lane = lanes.open(life(0))
    lanes.lose(life(0))
    assert not lanes.live
    with pytest.raises(LanesTaken, match="x0/0"):
        lanes.open(life(1))
    lanes.bury(life(0))
    assert lanes.open(life(1)) == lane
