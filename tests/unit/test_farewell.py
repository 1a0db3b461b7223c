"""An attention actor out of its seat is drained, as long as that gets on; then it ends when all know."""

from __future__ import annotations

import pytest

from actors.options import Loaded
from cluster.farewell import LONGEST_DRAIN_S, LONGEST_S, QUIET_S, Farewell
from cluster.life import Life
from cluster.processes import Pulse
from cluster.term import Term
from tests.simulation.machine import Machine

LOADED = Loaded(host="127.0.0.1", port=1, metrics_port=1, pid=1, bytes_read=0, checksum="", digests={})
BUSY = Pulse(has_ended=False, epoch=0, convicted=(), num_sequences=3, is_handing_over=True)
STUCK = Pulse(has_ended=False, epoch=0, convicted=(), num_sequences=3)
EMPTY = Pulse(has_ended=False, epoch=0, convicted=())


class Leaver:
    """Out of its seat at 10 s. look: at a time, at which all know what was so a second before."""

    def __init__(self, loaded: Loaded | None = LOADED) -> None:
        life = Life(1, Machine().spawn(1))
        self.farewell = Farewell("attention-0", Term(life=life, loaded=loaded), False, since_s=10.0)

    def look(self, now_s: float, found: Pulse | str | None) -> bool:
        return self.farewell.is_over(now_s, found, epoch_in_use=0, heard_by_all_s=now_s - 1.0)

    def told(self) -> Leaver:
        """All know at 12 s that it is drained."""
        for now_s in (10.0, 10.5, 11.0, 12.0):
            assert not self.look(now_s, EMPTY), "before all know, who has nothing may still get something"
            assert self.farewell.is_draining
        return self


def test_who_has_nothing_is_drained_once_all_know_and_ends_once_they_know_that():
    leaver = Leaver().told()
    assert not leaver.look(12.5, None) and leaver.farewell.is_draining, "it has said nothing since"
    assert not leaver.look(12.6, EMPTY) and not leaver.farewell.is_draining
    assert not leaver.look(13.5, EMPTY)
    assert leaver.look(13.7, EMPTY)


def test_a_hand_over_is_waited_for_as_long_as_it_gets_on():
    leaver = Leaver().told()
    for now_s in range(13, 100):
        assert not leaver.look(now_s, BUSY) and leaver.farewell.is_draining
    assert not leaver.look(100.0, STUCK) and not leaver.farewell.is_draining


def test_who_cannot_hand_over_is_waited_for_as_long_as_it_takes_to_begin():
    leaver = Leaver().told()
    assert not leaver.look(12.0 + QUIET_S - 0.1, STUCK) and leaver.farewell.is_draining
    assert not leaver.look(12.0 + QUIET_S, STUCK) and not leaver.farewell.is_draining


def test_nobody_is_drained_for_ever():
    leaver = Leaver().told()
    leaver.look(10.0 + LONGEST_DRAIN_S, BUSY)
    assert not leaver.farewell.is_draining
    deaf = Leaver()
    for now_s in (10.0, 10.0 + LONGEST_DRAIN_S):
        assert not deaf.farewell.is_over(now_s, BUSY, epoch_in_use=0, heard_by_all_s=9.0)
    end_s = 10.0 + LONGEST_DRAIN_S + LONGEST_S
    assert deaf.farewell.is_over(end_s, BUSY, epoch_in_use=0, heard_by_all_s=9.0)


@pytest.mark.parametrize("why", ["died", "hangs"])
def test_who_dies_on_the_way_is_over(why: str):
    assert Leaver().told().look(12.1, why)


def test_who_had_not_loaded_has_nothing_to_hand_over():
    leaver = Leaver(loaded=None)
    assert not leaver.farewell.is_draining
    assert not leaver.look(10.5, None)
    assert leaver.look(11.1, None)
