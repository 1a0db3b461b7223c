"""Whatever is late, lost, doubled or dies: every row once, the right sum, and no step for ever.

`make simulate` runs 10,000 schedules; here is a share of them, other ones in each run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from numpy.typing import NDArray

from router.exchange import FORGIVE_S, Exchange, Ticket
from router.transport import Event, Lost, Returned
from tests.simulation.attention import simulate
from tests.simulation.experts import without_sockets
from tests.simulation.schedule import CUT, DIE, Delivery, Fault, Schedule, Shape, schedules
from tests.simulation.world import NOTICE_S

SHAPES = [
    Shape(experts=2, layers=2),
    Shape(experts=3, copies=2),
    Shape(experts=4, copies=3),
    Shape(experts=2, layers=2, micro_batches=2),
    Shape(experts=3, copies=2, layers=2, micro_batches=2),
]
ANCHORED = [Shape(experts=2, anchor=True, micro_batches=number) for number in (1, 2)]
SHARE = settings(max_examples=settings().max_examples // (len(SHAPES) + len(ANCHORED)))


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # losses are what it is about
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_sockets(monkeypatch)
        yield
    logging.disable(logging.NOTSET)


@SHARE
@given(schedule=schedules())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_is_answered_once_and_rightly_and_every_step_ends(shape: Shape, schedule: Schedule):
    simulate(shape, schedule)


@SHARE
@given(schedule=schedules())
@pytest.mark.parametrize("shape", ANCHORED, ids=str)
def test_while_one_holder_lives_that_can_be_reached_nothing_is_parked(shape: Shape, schedule: Schedule):
    for actor in simulate(shape, schedule):
        assert actor.exchange.counters.parked_s == 0.0


def test_a_schedule_is_the_same_every_time():
    schedule = Schedule(
        (Delivery(50, 2), Delivery(0, 0), Delivery(7)),
        (Fault(3, DIE, 1, 0.5), Fault(12, CUT), Fault(15, DIE)),
    )
    shape = SHAPES[-1]
    first, again = (
        [[(life, parcel.key) for life, parcel in actor.wire.posted] for actor in simulate(shape, schedule)]
        for _ in range(2)
    )
    assert first == again


@pytest.mark.parametrize("seconds", [0.01, 3.0])
def test_parked_rows_go_on_as_soon_as_their_holders_are_back(seconds: float):
    longest_s = simulate(SHAPES[0], Schedule(faults=(Fault(0, DIE, 0, seconds), Fault(0, DIE, 1, seconds))))[
        0
    ].longest_s
    assert NOTICE_S + seconds <= longest_s < NOTICE_S + seconds + 0.05


def test_parked_rows_go_on_although_no_newer_view_comes():
    longest_s = simulate(SHAPES[0], Schedule(faults=(Fault(0, CUT, 0), Fault(0, CUT, 1))))[0].longest_s
    assert FORGIVE_S <= longest_s < FORGIVE_S + 0.05


def test_what_one_half_waits_for_is_hidden_behind_the_other():
    far = Schedule(deliveries=(Delivery(5),) * 500)
    one, two = (
        simulate(Shape(experts=2, layers=4, attention_s=0.01, micro_batches=number), far)[0].longest_s
        for number in (1, 2)
    )
    assert one == pytest.approx(4 * (0.01 + 0.011), rel=0.02)  # attention, there and back
    assert two == pytest.approx(4 * (0.005 + 0.011) + 0.005, rel=0.05)


# Whether it would notice


class TakesAnyAnswer(Exchange):
    def _take(self, event: Event) -> None:
        if isinstance(event, Returned):
            keys = [key for ticket in self._open for key, _ in ticket.owed_by(event.actor)]
            event = Returned(actor=event.actor, key=(*keys, event.key)[0], rows_PD=event.rows_PD)
        super()._take(event)


class LosesRows(Exchange):
    def _lose(self, event: Lost) -> None:
        for ticket in self._open:
            for key, _ in ticket.owed_by(event.actor):
                del ticket.waiting[key]


class NeverForgives(Exchange):
    _forgive_s = property(lambda self: float("inf"), lambda self, value: None)


class NamesTwice(Exchange):
    def _retry(self, ticket: Ticket, pairs: NDArray[np.int64]) -> None:
        self._attempt = 0
        super()._retry(ticket, pairs)


class GoesOnWithAnOldView(Exchange):
    _next_view = property(lambda self: lambda: None, lambda self, value: None)


@pytest.mark.parametrize(
    ("exchange_type", "shape"),
    [
        (TakesAnyAnswer, SHAPES[0]),
        (LosesRows, SHAPES[0]),
        (NeverForgives, SHAPES[0]),
        (NamesTwice, SHAPES[0]),
        (GoesOnWithAnOldView, SHAPES[0]),
        (TakesAnyAnswer, SHAPES[-2]),
    ],
)
def test_an_exchange_with_a_fault_is_found_out(exchange_type: type[Exchange], shape: Shape):
    def is_found_out(schedule: Schedule) -> bool:
        try:
            simulate(shape, schedule, exchange_type)
        except AssertionError:
            return True
        return False

    assert not is_found_out(Schedule()), "in peace it does no harm"
    find(schedules(), is_found_out, settings=settings(max_examples=1000, phases=[Phase.generate]))
