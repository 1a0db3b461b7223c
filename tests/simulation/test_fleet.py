"""Whoever dies, hangs or cannot load, wherever the controller ends: all serve again, nobody else lives.

The real controller, on fake processes and a fake clock.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings

from cluster import controller, farewell, life, workers
from cluster.controller import Controller
from cluster.fleet import Fleet
from cluster.hosts import seat_for
from cluster.orders import obey
from router.view import View
from tests.simulation import machine
from tests.simulation.fleets import (
    CONFIG,
    CRASH,
    DAMAGE,
    DOUBLE,
    DRAIN,
    HANG,
    KILL,
    KINDS,
    LAYERS,
    NUM_EXPERTS,
    ORDERS,
    RESTART,
    SCALE_EXPERTS,
    SHIFT,
    Fault,
    Story,
    check_end,
    faults,
    plan,
    play,
)
from tests.simulation.machine import Machine

PLANS = [plan(), plan(attention=1, experts=3, copies=2)]
EVERY_PAIR = frozenset(product(LAYERS, range(NUM_EXPERTS)))
SHARE = settings(max_examples=settings().max_examples // 5)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # deaths are what it is about
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(workers, "PULSE_S", 0.0)  # the fake clock has its own
        yield
    logging.disable(logging.NOTSET)


@SHARE
@given(story=faults(*KINDS, *ORDERS))
@pytest.mark.parametrize("begin", PLANS, ids=["one copy", "two copies"])
def test_after_any_faults_and_orders_every_seat_is_taken_once_and_nobody_else_lives(
    begin, story: list[Fault]
):
    play(begin, story)


class NeverPauses(Machine):
    """Nobody fails here: whoever is asked must be there, and everybody who must be asked is named."""

    def _step(self) -> None:
        super()._step()
        for server in self.attention:
            assert server.in_use is not None
            for actor in server.in_use.actors:
                assert self.processes[actor.incarnation].is_alive, f"{actor} has ended and is still asked"

    def check_view(self, packed: bytes) -> View:
        view = super().check_view(packed)
        assert not view.missing(), "nobody holds it"
        return view


@SHARE
@given(story=faults(*ORDERS))
@pytest.mark.parametrize("begin", PLANS, ids=["one copy", "two copies"])
def test_orders_alone_never_leave_an_expert_without_a_holder_or_ask_one_that_has_ended(begin, story):
    play(begin, story, machine_type=NeverPauses)


@pytest.mark.parametrize("calls", range(0, 120, 7))
def test_wherever_the_controller_ends_while_all_begin_all_serve(calls: int):
    play(PLANS[0], [Fault(0.0, CRASH, calls)])


@pytest.mark.parametrize("at_s", [0.3, 0.9, 5.0])
def test_a_number_is_used_once_though_its_bearer_and_the_controller_die_together(at_s: float):
    play(PLANS[0], [Fault(at_s, DOUBLE, calls) for calls in (0, 3, 9)])  # the machine minds the numbers


def test_who_has_loaded_but_was_never_told_to_run_is_replaced():
    story = Story(PLANS[0])
    while not any(process.worker.server for process in story.machine.alive):
        story.look()
    story.befall(Fault(0.0, CRASH, 0))
    silent = [process.number for process in story.machine.alive if not process.worker.serves]
    assert silent, "they have loaded, and nobody looked since"
    story.until_well()
    assert not {process.number for process in story.machine.alive} & set(silent)


def test_who_takes_the_place_of_one_that_a_request_has_ended_dies_of_it_too():
    story = Story(PLANS[0])
    story.until_well()
    story.fleet.poison(7)
    story.run(1.0)
    story.machine.processes[story.fleet.attention[0].incarnation].die()
    story.run(1.0)
    story.until_well()
    obey(story.fleet, "restart", {})
    story.run(20.0)
    story.until_well()
    assert [server.fatal_seed for server in story.machine.attention] == [7, 7]


def test_a_replacement_that_cannot_be_read_at_once_is_tried_again():
    story = play(PLANS[0], [Fault(4.0, DAMAGE), Fault(4.0, DAMAGE), Fault(4.1, KILL, 0)])
    assert any("cannot load" in text for _, text in story.fleet.events)
    assert not any(member.gave_up for member in story.fleet.members)


# Whether it would notice


class Forgets(Machine):
    def recall(self) -> bytes | None:
        return None


def is_found_out(kind: dict[str, type], faults: list[Fault]) -> bool:
    try:
        play(PLANS[0], faults, **kind)
    except AssertionError:
        return True
    return False


class WaitsForNobody(Fleet):
    """Drops and ends what some still ask for."""

    def _epoch_in_use(self) -> int:
        return self.epoch


def test_a_controller_that_forgets_its_numbers_is_found_out():
    kind = {"machine_type": Forgets}
    assert not is_found_out(kind, []), "in peace it does no harm"
    assert any(is_found_out(kind, [Fault(at_s / 10, DOUBLE, 3)]) for at_s in range(0, 60, 5))


@pytest.mark.parametrize("order", [SCALE_EXPERTS, DRAIN, RESTART, SHIFT])
def test_a_fleet_that_does_not_wait_until_all_know_is_found_out(order: str):
    orders = [Fault(3.0, order, 1), Fault(9.0, order, 2)]
    assert not is_found_out({"machine_type": NeverPauses}, orders)
    assert is_found_out({"machine_type": NeverPauses, "fleet_type": WaitsForNobody}, orders)


class Nowhere(Machine):
    """No process can be asked for, the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.num_refused = 0

    def living(self):
        self.num_refused += 1
        raise ConnectionError("the head is away")


def test_a_controller_that_cannot_begin_ends_its_process_so_that_another_begins(monkeypatch):
    monkeypatch.setattr(controller, "FAULT_PAUSE_S", 0.0)
    ended: list[int] = []
    machine = Nowhere()
    one = Controller(PLANS[0], CONFIG, b"", machine, machine, clock=lambda: 0.0, exit=ended.append)
    assert machine.num_refused == 0, "its birth asks nobody"
    one.run()
    assert (ended, machine.num_refused) == ([controller.FAULT], 1)


# Seats


class TwoPods(Machine):
    """Of each kind as many as the plan asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.seats.update({seat_for("attention"): 2, seat_for("expert"): 2})


@SHARE
@given(story=faults(KILL, DAMAGE, CRASH))
def test_after_any_faults_the_next_life_has_the_seat_of_the_one_before(story: list[Fault]):
    machine = play(plan(has_seats=True), story, machine_type=TwoPods).machine
    assert Counter(process.seat for process in machine.alive) == machine.seats


def test_who_waits_for_a_seat_does_not_hang_and_serves_when_there_is_one():
    story = Story(plan(has_seats=True), machine_type=TwoPods)
    story.machine.seats[seat_for("expert")] = 1
    story.run(2 * life.BUSY_S)
    assert len(story.machine.alive) == len(story.machine.processes) == 4, "nobody was ended"
    assert not story.has_been_well
    story.machine.seats[seat_for("expert")] = 2
    story.until_well()
    assert len(story.machine.processes) == 4


# Orders


@pytest.mark.parametrize(
    ("order", "arguments", "words"),
    [
        ("dance", {}, "is no order: scale, drain, restart"),
        ("scale", {}, "experts=N, attention=N or both"),
        ("scale", {"experts": 0}, "must be a whole number from 1"),
        ("scale", {"experts": "2"}, "must be a whole number from 1"),
        ("scale", {"seats": 2}, "experts=N, attention=N or both"),
        ("scale", {"experts": 1}, "2 copies of each expert on distinct actors: there are 1"),
        ("drain", {"name": "expert-9"}, "neither an actor that serves nor a host"),
        ("drain", {"name": "127.0.0.1"}, "keep at least one attention actor"),
        ("drain", {"name": "attention-0"}, "keep at least one attention actor"),
    ],
)
def test_what_cannot_be_is_refused_in_words_and_changes_nothing(order: str, arguments: dict, words: str):
    story = Story(PLANS[1])
    story.until_well()
    before = story.machine.recall()
    with pytest.raises(ValueError, match=words):
        obey(story.fleet, order, arguments)
    assert story.machine.recall() == before
    assert story.fleet.is_settled and not story.fleet.decisions


def test_who_came_last_leaves_first_and_names_are_given_again():
    story = Story(PLANS[0])
    story.until_well()
    for count, names in ((4, "0123"), (2, "01"), (3, "012")):
        obey(story.fleet, "scale", {"experts": count})
        story.run(1.0)
        story.until_well()
        assert [m.actor_id for m in story.fleet.experts] == [f"expert-{n}" for n in names]
    check_end(story)


def is_urgent(story: Story, actor_id: str) -> bool:
    [member] = [member for member in story.fleet.members if member.actor_id == actor_id]
    return bool(story.machine.processes[member.incarnation].worker._options.is_urgent)


def test_who_is_new_comes_politely_one_after_another_and_who_is_missed_at_once():
    story = Story(PLANS[0])
    story.until_well()
    assert is_urgent(story, "expert-0"), "nobody serves before all do"
    obey(story.fleet, "scale", {"experts": 4, "attention": 3})
    while any(member.is_new for member in story.fleet.members):
        story.look()
        assert sum(member.is_new and member.term is not None for member in story.fleet.members) <= 1
    story.until_well()
    assert not is_urgent(story, "expert-3") and not is_urgent(story, "attention-2")
    story.machine.processes[story.fleet.experts[3].incarnation].die()
    story.run(1.0)
    story.until_well()
    assert is_urgent(story, "expert-3")
    story.befall(Fault(story.machine.now_s, RESTART))
    story.run(20.0)
    story.until_well()
    assert not is_urgent(story, "expert-3"), "the one before serves until the next one does"


def test_all_who_are_new_wait_for_seats_together():
    story = Story(plan(has_seats=True), machine_type=TwoPods)
    story.until_well()
    obey(story.fleet, "scale", {"experts": 4})
    story.run(1.0)
    assert sum(not process.is_seated for process in story.machine.alive) == 2, "a demand for two nodes"
    story.machine.seats[seat_for("expert")] = 4
    story.until_well()


def test_an_attention_actor_that_leaves_serves_until_another_does(monkeypatch: pytest.MonkeyPatch):
    story = Story(PLANS[0])
    story.until_well()
    obey(story.fleet, "scale", {"attention": 1})
    story.run(5.0)
    monkeypatch.setitem(machine.CALL_S, "load_attention", 40.0)  # longer than one that leaves is waited for
    obey(story.fleet, "scale", {"attention": 2})
    obey(story.fleet, "drain", {"name": "attention-0"})
    serving = [True]
    while len(story.fleet.attention) > 1 or not story.fleet.is_settled:
        story.look()
        serving.append(any(member.is_active for member in story.fleet.attention))
        assert len(serving) < 100_000, "it never leaves"
    assert all(serving)
    assert [member.actor_id for member in story.fleet.attention] == ["attention-1"]


def test_at_a_restart_the_life_before_serves_on_beside_the_next_until_it_is_drained():
    story = Story(PLANS[0], machine_type=NeverPauses)
    story.until_well()
    story.machine.running = 1
    obey(story.fleet, "restart", {})
    while not any(gone.is_draining for gone in story.fleet.farewells):
        story.look()
    [gone] = story.fleet.farewells
    [member] = [member for member in story.fleet.attention if member.actor_id == gone.actor_id]
    assert member.incarnation > gone.life.number
    front = Controller(PLANS[0], CONFIG, b"", story.machine, story.machine, clock=lambda: story.machine.now_s)
    front._fleet = story.fleet
    front._is_in_hand.set()
    listed = [(port, is_drained) for name, _, port, is_drained in front.endpoints() if name == gone.actor_id]
    assert listed == [(member.incarnation, False), (gone.life.number, True)], "ingresses are told both"
    obey(story.fleet, "scale", {"experts": 3})
    story.run(farewell.QUIET_S - 0.5)
    assert gone.is_draining, "its sequence may yet go"
    server = story.machine.processes[gone.life.number].worker.server
    assert server is not None and server.in_use == story.fleet.view, "it computes by the newest view"
    story.machine.running = 0
    story.until_well()
    story.run(1.0)
    check_end(story)


def test_an_heir_waits_until_another_holds_what_its_seat_is_to_lose():
    play(PLANS[0], [Fault(1.6, RESTART), Fault(1.8, SCALE_EXPERTS, 2)], machine_type=NeverPauses)


def test_experts_that_a_seat_gains_while_its_heir_loads_always_have_a_holder(
    monkeypatch: pytest.MonkeyPatch,
):
    story = Story(PLANS[0], machine_type=NeverPauses)
    story.until_well()
    obey(story.fleet, "scale", {"experts": 3})
    story.run(1.0)
    story.until_well()
    monkeypatch.setitem(machine.CALL_S, "load_expert", 20.0)  # longer than experts take to move
    obey(story.fleet, "restart", {})
    while not any(member.heir for member in story.fleet.experts):
        story.look()
    story.run(1.0)
    obey(story.fleet, "scale", {"experts": 2})
    story.run(5.0)
    story.until_well()
    story.run(1.0)
    check_end(story)


def test_who_leaves_is_asked_until_all_know_though_the_controller_ends_in_between(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(machine, "ADOPT_S", 3.0)  # long steps: an old view is still computed by
    for calls in range(0, 40, 2):
        story = Story(PLANS[0], machine_type=NeverPauses)
        story.until_well()
        obey(story.fleet, "scale", {"experts": 3})
        story.run(1.0)
        story.until_well()
        obey(story.fleet, "scale", {"experts": 2})
        story.befall(Fault(story.machine.now_s, CRASH, calls))
        story.run(10.0)
        story.until_well()
        story.run(4.0)
        check_end(story)


@pytest.mark.parametrize("order", [KILL, SCALE_EXPERTS])
def test_experts_whose_files_are_damaged_are_taken_from_who_holds_them(order: str):
    story = Story(PLANS[1])
    story.until_well()
    story.machine.damaged = EVERY_PAIR
    if order == KILL:
        story.befall(Fault(0.0, CRASH, 0))
        story.run(2.0)  # the next controller knows what was read from those that live
        story.machine.processes[story.fleet.experts[0].incarnation].die()
    else:
        obey(story.fleet, "scale", {"experts": 2})
    story.run(3.0)
    story.until_well()
    story.run(1.0)
    check_end(story)
    assert not any("is not what was read" in text for _, text in story.fleet.events)


def test_what_leaves_is_taken_from_the_one_that_leaves_though_it_is_the_only_copy():
    story = Story(plan(experts=3))
    story.until_well()
    story.machine.damaged = EVERY_PAIR
    obey(story.fleet, "scale", {"experts": 2})
    story.run(3.0)
    story.until_well()
    story.run(1.0)
    check_end(story)


def test_a_next_life_takes_its_experts_from_the_one_before():
    story = Story(PLANS[0])
    story.until_well()
    story.machine.damaged = EVERY_PAIR
    obey(story.fleet, "restart", {})
    story.run(20.0)
    story.until_well()
    story.run(1.0)
    check_end(story)


@pytest.mark.parametrize("kind", [KILL, HANG])
def test_experts_that_nobody_holds_any_more_are_refused_until_the_files_are_back(kind: str):
    story = Story(PLANS[0])
    story.until_well()
    story.machine.damaged = EVERY_PAIR
    process = story.machine.processes[story.fleet.experts[0].incarnation]
    if kind == KILL:
        process.die()
    else:
        process.is_hung = True
    story.run(20.0)
    assert any("is not what was read of it before" in text for _, text in story.fleet.events)
    assert not story.fleet.is_settled and story.fleet.view.missing()
    story.machine.damaged = frozenset()
    story.until_well()
    story.run(1.0)
    check_end(story)
