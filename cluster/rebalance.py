"""When experts move to even the load.

Looks at what was measured every so often; a layer changes only if it is uneven and that helps by enough, and
no more than a few slots of it are written. Knows nothing of how load is asked for, or of how experts move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.balance import WRITES, Loads, Rule, table
from cluster.fleet import Fleet
from cluster.survey import Pairs, Survey, rise
from router.placement import Held, adapt, imbalance, room_for
from router.view import Pair

UNEVEN = 1.05  # a layer's imbalance below which nothing is gained
GAIN = 0.03  # least share of a layer's imbalance that must go
FRESH = 0.5  # weight of the newest window against all before
LEAST_PAIRS = 20  # of an expert in the mean, before a window says anything
LAYERS_AT_ONCE = 4  # of one look: each takes milliseconds, and others wait for the controller


@dataclass(slots=True)
class BalanceCounters:
    """before, after: imbalance of the actors, mean of the layers, as measured and as expected after moves."""

    before: float = 1.0
    after: float = 1.0
    slots_written: int = 0


class Rebalancer:
    """interval_s: between looks at the balance; 0: never."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._since: dict[int, Pairs] = {}
        self._is_measured = False
        self._next_s: float | None = None
        self._work: _Work | None = None
        self.counters = BalanceCounters()

    def note(self, fleet: Fleet, survey: Survey, now_s: float) -> None:
        """A survey has come in: at the end of an interval, begin to look at the layers."""
        if not self._interval_s or len(fleet.experts) < 2:
            return
        if self._next_s is None:
            self._next_s, self._since = now_s + self._interval_s, survey.pairs
            return
        if now_s < self._next_s or not survey.pairs:
            return
        window_LE = rise(survey.pairs, self._since)
        if window_LE.mean() < LEAST_PAIRS:
            return  # let more come
        self._next_s, self._since = now_s + self._interval_s, survey.pairs
        share_LE = window_LE / np.maximum(window_LE.mean(1, keepdims=True), 1e-9)
        old_LE = fleet.load_LE if self._is_measured else share_LE
        fleet.load_LE, self._is_measured = FRESH * share_LE + (1 - FRESH) * old_LE, True
        self._work = _Work(fleet)

    def go_on(self, fleet: Fleet) -> None:
        """A few layers more; when all are looked at, let experts move if it is worth it."""
        work = self._work
        if work is None:
            return
        if not fleet.is_settled or fleet.renew_upto or not work.fits(fleet):
            self._work = None  # somebody comes or goes: the next interval sees what that has made of it
            return
        if work.go_on(fleet, LAYERS_AT_ONCE):
            return
        self._work = None
        self.counters.before, self.counters.after = float(np.mean(work.before)), float(np.mean(work.after))
        if work.changed:
            written = work.apply(fleet)
            self.counters.slots_written += written
            fleet.decisions["rebalance", "controller"] += 1
            fleet.note(
                f"rebalance: {written} slots of {len(work.changed)} layers, imbalance of the measured load "
                f"{self.counters.before:.2f} -> {self.counters.after:.2f}"
            )


class _Work:
    """One look at all layers, a few at a time."""

    def __init__(self, fleet: Fleet) -> None:
        self._names = [member.actor_id for member in fleet.experts]
        self._left = list(enumerate(fleet.config.routed_layers))
        self.changed: dict[int, Held] = {}
        self.before: list[float] = []
        self.after: list[float] = []

    def fits(self, fleet: Fleet) -> bool:
        return self._names == [member.actor_id for member in fleet.experts]

    def go_on(self, fleet: Fleet, count: int) -> bool:
        """Whether there is more to look at."""
        for place, layer in self._left[:count]:
            held_AE = table(fleet.experts, layer, fleet.config.num_experts)
            better_AE = improved(held_AE, fleet.load_LE[place], fleet.rule)
            self.before.append(imbalance(held_AE, fleet.load_LE[place]))
            if better_AE is not None:
                self.changed[layer] = better_AE
                held_AE = better_AE
            self.after.append(imbalance(held_AE, fleet.load_LE[place]))
        self._left = self._left[count:]
        return bool(self._left)

    def apply(self, fleet: Fleet) -> int:
        """Say anew what each should hold; returns how many slots are to be written."""
        written = 0
        for actor, member in enumerate(fleet.experts):
            wanted: frozenset[Pair] = member.wanted or frozenset()
            kept = {pair for pair in wanted if pair[0] not in self.changed}
            later = {
                (layer, int(e))
                for layer, held_AE in self.changed.items()
                for e in np.flatnonzero(held_AE[actor])
            }
            member.wanted = frozenset(kept | later)
            written += len(member.wanted - wanted)
        fleet.remember()
        return written


def improved(held_AE: Held, load_E: Loads, rule: Rule) -> Held | None:
    """A placement that is worth its moves; None if this one is even enough, or no other is enough better."""
    before = imbalance(held_AE, load_E)
    if before < UNEVEN:
        return None
    room = room_for(held_AE.shape[1], len(held_AE), rule.copies, rule.redundant_slots)
    later_AE = adapt(held_AE, load_E, room, WRITES)
    return later_AE if imbalance(later_AE, load_E) <= before * (1 - GAIN) else None
