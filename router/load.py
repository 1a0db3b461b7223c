"""Expert load: what each expert and each actor was asked for.

Counted when a layer's rows are all back: a pair (token, expert) counts once, however often it was sent. Knows
nothing of who computes it, or of metrics.

Letters: L MoE layers  E routed experts
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

WINDOW_S = 60.0  # what "now" means to those who look
SLICE_S = 5.0  # the window moves by this
ANSWER_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)


class ExpertLoad:
    """Pairs since birth and over the last WINDOW_S; written by the step loop, read by other threads.

    read: of pairs that a device counts itself, what it has counted; then nobody calls `count`.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[], Counts] | None = None,
    ) -> None:
        self._counted_LE: Counts = np.zeros((num_layers, num_experts), dtype=np.int64)
        self._read = read or (lambda: self._counted_LE)
        self._clock = clock
        self._slices: deque[tuple[float, Counts]] = deque([(clock(), self.pairs().copy())])

    def pairs(self) -> Counts:
        """[L, E] since birth."""
        return self._read()

    def count(self, place: int, expert_P: NDArray[np.int32]) -> None:
        """One layer's pairs of a step; place: the layer's number among the MoE layers."""
        self._counted_LE[place] += np.bincount(expert_P, minlength=self._counted_LE.shape[1])

    def mark(self) -> None:
        """Called once a step: moves the window on when its time has come."""
        now_s = self._clock()
        if now_s < self._slices[-1][0] + SLICE_S:
            return
        if now_s > self._slices[-1][0] + WINDOW_S:  # nothing happened for so long: what was before is over
            self._slices.clear()
        self._slices.append((now_s, self.pairs().copy()))
        while len(self._slices) > 1 and self._slices[1][0] <= now_s - WINDOW_S:
            self._slices.popleft()

    def recent(self) -> Counts:
        """[L, E] pairs of about the last WINDOW_S; none if no step was in it."""
        start_s = self._clock() - WINDOW_S
        slices = tuple(self._slices)  # at once: the step loop may move it on
        if slices[-1][0] < start_s:
            return np.zeros_like(self.pairs())
        past = [before_LE for at_s, before_LE in slices if at_s <= start_s]
        return self.pairs() - (past[-1] if past else slices[0][1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """How evenly one layer's load lies on its experts. imbalance: max / mean, 1 if even; 0 without load."""

    max: float
    mean: float
    p99: float
    cv: float

    @property
    def imbalance(self) -> float:
        return self.max / self.mean if self.mean else 0.0


def balances(pairs_LE: Counts) -> list[Balance]:
    """One of every layer."""
    mean_L, p99_L = pairs_LE.mean(1), np.percentile(pairs_LE, 99, axis=1)
    cv_L = pairs_LE.std(1) / np.maximum(mean_L, 1e-9)
    return [
        Balance(max=float(peak), mean=float(mean), p99=float(p99), cv=float(cv))
        for peak, mean, p99, cv in zip(pairs_LE.max(1), mean_L, p99_L, cv_L, strict=True)
    ]


def hottest(pairs_LE: Counts, count: int) -> list[tuple[int, int, float]]:
    """(place of the layer, expert, load over its layer's mean) of the `count` highest, highest first."""
    heat_LE = pairs_LE / np.maximum(pairs_LE.mean(1, keepdims=True), 1e-9)
    order = np.argsort(-heat_LE, axis=None, kind="stable")[:count]
    places, experts = np.unravel_index(order, heat_LE.shape)
    found = zip(places.tolist(), experts.tolist(), strict=True)
    return [
        (layer, expert, float(heat_LE[layer, expert])) for layer, expert in found if heat_LE[layer, expert]
    ]


@dataclass(slots=True)
class Edge:
    """What went to one expert actor and came back. answers: by ANSWER_BUCKETS_S, the last one without end."""

    parcels: int = 0
    pairs: int = 0
    bytes_out: int = 0
    bytes_back: int = 0
    answer_s: float = 0.0
    answers: list[int] = field(default_factory=lambda: [0] * (len(ANSWER_BUCKETS_S) + 1))

    def note_sent(self, pairs: int, num_bytes: int) -> None:
        self.parcels += 1
        self.pairs += pairs
        self.bytes_out += num_bytes

    def note_answer(self, seconds: float, num_bytes: int) -> None:
        self.bytes_back += num_bytes
        self.answer_s += seconds
        self.answers[bisect_left(ANSWER_BUCKETS_S, seconds)] += 1


@dataclass(slots=True)
class ExchangeCounters:
    """What an operator wants to know; plain numbers, read by other threads. waited_s: in combine, in all."""

    retried_pairs: int = 0
    waited_s: float = 0.0
    parked_s: float = 0.0
    lost_actors: int = 0
    doubted_pairs: int = 0
