"""What a fleet decides by itself: experts move to even the load, actors come and go with the work.

The real governor and fleet, on fake processes and a fake clock.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import workers
from cluster.autoscale import Autoscaler, Bounds, Seen, Target
from cluster.balance import Rule
from cluster.rebalance import UNEVEN, improved
from router.placement import imbalance, room_for, solve
from tests.simulation.fleets import CRASH, KILL, Fault, Story, check_end, plan
from tests.simulation.test_fleet import NeverPauses

SHARE = settings(max_examples=settings().max_examples // 2)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(workers, "PULSE_S", 0.0)
        yield
    logging.disable(logging.NOTSET)


def begun(**options: object) -> Story:
    story = Story(plan(**options), machine_type=NeverPauses)  # type: ignore[arg-type]
    story.until_well()
    return story


def said(story: Story, word: str) -> list[str]:
    return [text for _, text in story.fleet.events if word in text]


def test_a_hot_layer_is_evened_and_then_left_alone():
    story = begun(rebalance_s=10.0, redundant=2)
    story.machine.load_LE = np.array([[100.0, 100.0, 100.0, 1.0, 1.0, 1.0], [10.0] * 6])
    story.run(60.0)
    [words] = said(story, "rebalance")
    assert "slots of 1 layers" in words and "-> 1.00" in words
    assert story.governor.rebalancer.counters.slots_written > 0
    story.run(60.0)
    assert len(said(story, "rebalance")) == 1, "a load that stays moves nothing more"
    check_end(story)


def test_without_load_or_switched_off_nothing_moves():
    for rebalance_s, load in ((10.0, 0.0), (0.0, 100.0)):
        story = begun(rebalance_s=rebalance_s)
        story.machine.load_LE = load * np.array([[3.0, 2.0, 2.0, 0.0, 0.0, 0.0]] * 2)
        story.run(60.0)
        assert not said(story, "rebalance")


@pytest.mark.parametrize("kind", [KILL, CRASH])
@pytest.mark.parametrize("late_s", [0.1, 0.3, 0.5, 0.8])
def test_a_death_while_experts_move_leaves_all_held(kind: str, late_s: float):
    story = Story(plan(rebalance_s=10.0, redundant=2))
    story.until_well()
    story.machine.load_LE = np.array([[100.0, 100.0, 100.0, 1.0, 1.0, 1.0]] * 2)
    while not story.fleet.decisions["rebalance", "controller"]:
        story.look()
    story.run(late_s)
    story.befall(Fault(0.0, kind, 0))
    story.run(15.0)
    story.until_well()
    story.run(1.0)
    check_end(story)


def test_actors_come_with_the_work_and_go_with_it():
    story = begun(experts=2, attention=1, autoscale={"expert": Bounds(least=1, most=4)})
    story.machine.busy_share = 0.95
    story.run(100.0)
    assert len(story.fleet.experts) == 4
    assert "is above 80%" in said(story, "expert-2 comes")[0]
    story.machine.busy_share = 0.1
    story.run(1000.0)
    assert len(story.fleet.experts) == 1
    assert "is below 40%, nothing waits" in said(story, "leaves")[0]
    check_end(story)


def test_what_decides_survives_without_a_kind_of_its_own():
    story = begun(attention=1, autoscale={"attention": Bounds(least=1, most=2)})
    story.machine.running = 1  # all there is place for
    story.run(60.0)
    assert [m.actor_id for m in story.fleet.attention] == ["attention-0", "attention-1"]
    assert story.fleet.decisions["scale", "autoscaler"] == 1


# The policies alone


@SHARE
@given(
    load=st.lists(st.integers(0, 100), min_size=8, max_size=8).map(lambda x: np.array(x, dtype=np.float64)),
    later=st.permutations(range(8)),
)
def test_a_layer_moves_only_for_a_gain_and_then_rests(load: np.ndarray, later: list[int]):
    rule = Rule(copies=1, redundant_slots=2)
    held_AE = solve(load[later], 2, room_for(8, 2, 1, 2))
    better_AE = improved(held_AE, load, rule)
    if better_AE is None:
        return
    assert imbalance(held_AE, load) >= UNEVEN
    assert imbalance(better_AE, load) < imbalance(held_AE, load)
    for _ in range(4):
        again_AE = improved(better_AE, load, rule)
        if again_AE is None:
            return
        assert imbalance(again_AE, load) < imbalance(better_AE, load)
        better_AE = again_AE
    raise AssertionError("it never rests")


@SHARE
@given(seen=st.lists(st.tuples(st.floats(0, 1.5), st.floats(0, 20)), max_size=60))
def test_the_autoscaler_keeps_its_bounds_rests_between_changes_and_says_why(seen: list[tuple[float, float]]):
    target = Target()
    scaler = Autoscaler({"expert": Bounds(least=2, most=5)}, target)
    count, changed_s = 3, float("-inf")
    for look, (utilisation, wait_s) in enumerate(seen):
        now_s = 5.0 * look
        decision = scaler.decide("expert", Seen(count=count, utilisation=utilisation, wait_s=wait_s), now_s)
        if decision is None:
            continue
        assert decision.reason
        assert 2 <= decision.count <= 5 and abs(decision.count - count) == 1
        rest_s = target.rest_up_s if decision.count > count else target.rest_down_s
        assert now_s - changed_s >= rest_s
        if decision.count > count:
            assert utilisation > target.high or wait_s > target.wait_s
        else:
            assert utilisation < target.low and not wait_s
        count, changed_s = decision.count, now_s


@given(work=st.floats(0.1, 10.0))
@SHARE
def test_a_steady_load_ends_in_a_steady_number(work: float):
    """work: actors' worth of it; however it begins, the number settles and stays."""
    scaler = Autoscaler({"expert": Bounds(least=1, most=16)})
    count, changes = 16, []
    for look in range(2000):
        decision = scaler.decide("expert", Seen(count=count, utilisation=work / count), 5.0 * look)
        if decision is not None:
            count = decision.count
            changes.append(look)
    assert not changes or changes[-1] < 1000
    assert work / count <= 0.8 or count == 16
