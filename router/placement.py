"""Which actor should hold which expert of one layer.

Greedy EPLB: the experts with most load per copy get the spare slots, then the largest go first to the least
loaded actor. A placement that is in use is adapted instead: few slots are written anew, those that even the
load most. Pure functions; knows nothing of actors, weights or views.

Letters: A expert actors  E routed experts  N slots that are filled
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Held = NDArray[np.bool_]  # [A, E]
Load = NDArray[np.float64]  # [E]

GAIN = 1e-4  # least share of the strain that a write must save
CANDIDATES = 16  # of each kind of change that are tried out


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """How much there is: num_slots of each actor, copies of each expert at least, on distinct actors."""

    num_slots: int
    min_copies: int = 1

    def check(self, num_actors: int, num_experts: int) -> None:
        """Raises ValueError if the experts cannot be held."""
        if not 1 <= self.min_copies <= num_actors:
            raise ValueError(
                f"{self.min_copies} copies of each expert on distinct actors: there are {num_actors} actors"
            )
        if self.num_slots * num_actors < self.min_copies * num_experts:
            raise ValueError(
                f"{num_actors} actors of {self.num_slots} slots cannot hold {self.min_copies} copies of "
                f"{num_experts} experts"
            )


def room_for(num_experts: int, num_actors: int, min_copies: int, redundant_slots: int) -> Room:
    """As many slots of each actor as hold min_copies of all and redundant_slots beyond."""
    num_slots = -(-(num_experts * min_copies + redundant_slots) // num_actors)
    return Room(num_slots=min(num_slots, num_experts), min_copies=min_copies)


def actor_loads(held_AE: Held, load_E: Load) -> Load:
    """[A]: each expert's load shared evenly by its copies."""
    loads: Load = held_AE @ (load_E / np.maximum(held_AE.sum(0), 1))
    return loads


def imbalance(held_AE: Held, load_E: Load) -> float:
    """Of the actors: most load over the mean, 1 if even; 1 without load."""
    loads = actor_loads(held_AE, load_E)
    return float(loads.max() / loads.mean()) if loads.any() else 1.0


def solve(load_E: Load, num_actors: int, room: Room) -> Held:
    """From nothing, every slot used that can be."""
    room.check(num_actors, len(load_E))
    return _filled(np.zeros((num_actors, len(load_E)), dtype=bool), load_E, room)


def adapt(held_AE: Held, load_E: Load, room: Room, max_writes: int) -> Held:
    """What is held, made to fit the room and the load.

    Slots beyond the room are given up and missing copies are placed however many it takes; beyond that at
    most max_writes slots are written.
    """
    room.check(len(held_AE), len(load_E))
    fitting_AE = _trimmed(held_AE, load_E, room)
    return _evened(_filled(fitting_AE, load_E, room), load_E, room, max_writes)


def _trimmed(held_AE: Held, load_E: Load, room: Room) -> Held:
    """Give up copies of actors that hold too many: such that what stays is near the mean load."""
    held_AE = held_AE.copy()
    mean = load_E.sum() / len(held_AE)
    for actor in np.argsort(-held_AE.sum(1), kind="stable"):
        while (excess := int(held_AE[actor].sum()) - room.num_slots) > 0:
            share_E = load_E / np.maximum(held_AE.sum(0), 1)
            own = np.flatnonzero(held_AE[actor])
            wanted = max(0.0, float(share_E[own].sum()) - mean) / excess
            is_last = held_AE[:, own].sum(0) <= room.min_copies
            order = np.lexsort((np.abs(share_E[own] - wanted), is_last))
            held_AE[actor, own[order[0]]] = False
    return held_AE


def _filled(held_AE: Held, load_E: Load, room: Room) -> Held:
    """Place copies that are missing, then more of those with most load per copy while slots are free."""
    held_AE = held_AE.copy()
    num_actors = len(held_AE)
    copies_E = held_AE.sum(0)
    wanted_E = np.maximum(copies_E, room.min_copies)
    spare = num_actors * room.num_slots - int(wanted_E.sum())
    heap = [
        (-load_E[e] / wanted_E[e], int(e))
        for e in range(len(load_E))
        if load_E[e] and wanted_E[e] < num_actors
    ]
    heapq.heapify(heap)
    while spare > 0 and heap:
        _, expert = heapq.heappop(heap)
        wanted_E[expert] += 1
        spare -= 1
        if wanted_E[expert] < num_actors:
            heapq.heappush(heap, (-load_E[expert] / wanted_E[expert], expert))
    for _ in range(-spare):  # min_copies rose, or actors left: copies beyond make room
        beyond_E = copies_E > room.min_copies
        expert = int(np.argmin(np.where(beyond_E, load_E / np.maximum(copies_E, 1), np.inf)))
        actor = int(np.argmax(np.where(held_AE[:, expert], actor_loads(held_AE, load_E), -1.0)))
        held_AE[actor, expert] = False
        copies_E[expert] -= 1
        wanted_E[expert] -= 1
    share_E = load_E / np.maximum(wanted_E, 1)
    loads_A = held_AE @ share_E
    for expert in np.argsort(-share_E, kind="stable"):
        for _ in range(int(wanted_E[expert] - copies_E[expert])):
            actor = _place(held_AE, loads_A, int(expert), share_E, room.num_slots)
            loads_A[actor] += share_E[expert]
    return held_AE


def _place(held_AE: Held, loads_A: Load, expert: int, share_E: Load, num_slots: int) -> int:
    """Give one copy to the least loaded actor that has a slot and does not hold it; returns who."""
    num_held_A = held_AE.sum(1)
    open_A = (num_held_A < num_slots) & ~held_AE[:, expert]
    if not open_A.any():  # those with slots hold it already: one of them takes something from another
        taker = int(np.argmin(num_held_A))
        giver = int(np.argmin(np.where(held_AE[:, expert], np.inf, loads_A)))
        moved = int(np.flatnonzero(held_AE[giver] & ~held_AE[taker])[0])
        held_AE[giver, moved], held_AE[taker, moved] = False, True
        loads_A[giver] -= share_E[moved]
        loads_A[taker] += share_E[moved]
        open_A[giver] = True
    actor = int(np.lexsort((num_held_A, np.where(open_A, loads_A, np.inf)))[0])
    held_AE[actor, expert] = True
    return actor


def _evened(held_AE: Held, load_E: Load, room: Room, max_writes: int) -> Held:
    """Write the slots that even the load most, one or two at a time."""
    left = max_writes
    while left > 0 and load_E.any():
        changes = _best_exchanges(held_AE, load_E, room)
        if left > 1:
            changes += _best_swaps(held_AE, load_E)
        strain = _strain(held_AE, load_E)
        changed = [(change.applied(held_AE), len(change.written)) for change in changes]
        gains = [(strain - _strain(after_AE, load_E)) / writes for after_AE, writes in changed]
        if not gains or max(gains) <= GAIN * strain:
            break
        held_AE, writes = changed[gains.index(max(gains))]
        left -= writes
    return held_AE


def _strain(held_AE: Held, load_E: Load) -> float:
    """Fourth powers, so that the busiest count most, and those that are nearly as busy count, too."""
    return float((actor_loads(held_AE, load_E) ** 4).sum())


@dataclass(frozen=True, slots=True)
class _Change:
    """(actor, expert) pairs."""

    cleared: tuple[tuple[int, int], ...]
    written: tuple[tuple[int, int], ...]

    def applied(self, held_AE: Held) -> Held:
        held_AE = held_AE.copy()
        for actor, expert in self.cleared:
            held_AE[actor, expert] = False
        for actor, expert in self.written:
            held_AE[actor, expert] = True
        return held_AE


def _lowest(change_XY: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Where the CANDIDATES lowest values are, of those below zero."""
    flat = change_XY.ravel()
    found = np.argpartition(flat, min(CANDIDATES, len(flat)) - 1)[:CANDIDATES]
    places = (np.unravel_index(place, change_XY.shape) for place in found if flat[place] < 0)
    return [(int(x), int(y)) for x, y in places]


def _best_exchanges(held_AE: Held, load_E: Load, room: Room) -> list[_Change]:
    """One more copy of an expert in a slot that is free, or in place of a copy that can be spared.

    Those that lower the sum of squared loads most, which takes no trying.
    """
    held = held_AE.astype(np.float64)
    copies_E, loads_A = held.sum(0), actor_loads(held_AE, load_E)
    share_E = load_E / np.maximum(copies_E, 1)
    thinner_E = load_E / (copies_E + 1)  # per copy, with one more
    relief_E = share_E - thinner_E
    thicker_E = load_E / np.maximum(copies_E - 1, 1)  # with one less
    burden_E = thicker_E - share_E
    on_holders_E = loads_A @ held
    together_EE = held.T @ held
    spared = [(a, e) for a, e in np.argwhere(held_AE) if copies_E[e] > room.min_copies]
    free = np.flatnonzero(held_AE.sum(1) < room.num_slots)
    actor_N = np.array([a for a, _ in spared] + list(free), dtype=np.int64)
    given_N = np.array([e for _, e in spared] + [0] * len(free), dtype=np.int64)
    if not len(actor_N):
        return []
    is_given_N = np.arange(len(actor_N)) < len(spared)
    thick_N1, burden_N1 = ((x_E[given_N] * is_given_N)[:, None] for x_E in (thicker_E, burden_E))
    here_NE = thinner_E - thick_N1  # what the actor itself gains beside what all holders do
    change_NE = 2 * (burden_N1 * on_holders_E[given_N, None] - relief_E * on_holders_E)
    change_NE += 2 * here_NE * loads_A[actor_N, None] + here_NE**2
    change_NE += burden_N1**2 * copies_E[given_N, None] + relief_E**2 * copies_E
    change_NE += 2 * burden_N1 * here_NE - 2 * burden_N1 * relief_E * together_EE[given_N]
    change_NE[held_AE[actor_N]] = np.inf
    slots = [(int(a), int(e)) for a, e in zip(actor_N, given_N, strict=True)]
    return [
        _Change((slots[n],) if is_given_N[n] else (), ((slots[n][0], expert),))
        for n, expert in _lowest(change_NE)
    ]


def _best_swaps(held_AE: Held, load_E: Load) -> list[_Change]:
    """Two actors give each other one expert."""
    actor_N, expert_N = np.nonzero(held_AE)
    share_N = (load_E / np.maximum(held_AE.sum(0), 1))[expert_N]
    load_N = actor_loads(held_AE, load_E)[actor_N]
    has_NN = held_AE[np.ix_(np.arange(len(held_AE)), expert_N)][actor_N]  # whether n's actor holds m's expert
    moved_NN = share_N[:, None] - share_N
    saved_NN = 2 * moved_NN * (load_N[:, None] - load_N - moved_NN)
    saved_NN[has_NN | has_NN.T] = -np.inf
    slots = [(int(a), int(e)) for a, e in zip(actor_N, expert_N, strict=True)]
    return [
        _Change((slots[n], slots[m]), ((slots[n][0], slots[m][1]), (slots[m][0], slots[n][1])))
        for n, m in _lowest(-saved_NN)
    ]
