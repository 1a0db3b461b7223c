"""What the actors count, asked every few seconds.

Nobody is waited for: who has not answered in time is left out of that survey. Knows nothing of what the
numbers are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.fleet import Fleet
from cluster.processes import Answer, AnswerLost

PERIOD_S = 5.0
PATIENCE_S = 2.0

Pairs = NDArray[np.float64]  # [L, E]


class Survey:
    """By number of a life: `stats` of each that serves, `pairs` (token, expert) of each attention actor's.

    Both count since its birth; those of lives that are over are forgotten.
    """

    def __init__(self) -> None:
        self.stats: dict[int, dict[str, float]] = {}
        self.pairs: dict[int, Pairs] = {}
        self.taken_s = float("-inf")
        self._asked: dict[tuple[str, int], Answer] = {}
        self._asked_s = float("-inf")

    def look(self, fleet: Fleet, now_s: float) -> bool:
        """Whether a new survey has just come in."""
        if self._asked:
            if not all(answer.is_done() for answer in self._asked.values()) and (
                now_s < self._asked_s + PATIENCE_S
            ):
                return False
            self._collect(now_s)
            return True
        if now_s >= self._asked_s + PERIOD_S:
            self._asked_s = now_s
            serving = [(member, member.serving) for member in fleet.members]
            for member, term in serving:
                if term is not None:
                    self._asked["stats", term.life.number] = term.life.ask("stats")
                    if not member.is_expert:
                        self._asked["pairs", term.life.number] = term.life.ask("expert_pairs")
        return False

    def _collect(self, now_s: float) -> None:
        answered = {
            key: value for key, answer in self._asked.items() if (value := _value(answer)) is not None
        }
        self.stats = {number: value for (what, number), value in answered.items() if what == "stats"}
        self.pairs = {
            number: np.array(value, dtype=np.float64)
            for (what, number), value in answered.items()
            if what == "pairs" and len(value)
        }
        self.taken_s = now_s
        self._asked = {}


def rise(now: Mapping[int, Any], before: Mapping[int, Any]) -> Any:
    """Of all together since `before`; who was not there then counts from nothing."""
    return sum(value - before.get(number, 0.0) for number, value in now.items())


def _value(answer: Answer) -> Any:
    if not answer.is_done():
        return None
    try:
        return answer.get()
    except AnswerLost:
        return None
