"""Rates: what lies between the looks of a window.

A process answers some looks and misses others; another may take its name. So what each counted is subtracted
for itself, between its own first and last answer, before anything is added up. Knows nothing of who looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Counts = Sequence[Sequence[int]]  # [L][E]
Rates = list[list[float]]
Window = Sequence[Mapping[str, Any]]  # snapshots, oldest first; at least one
Life = tuple[str, int]  # actor id and incarnation: a process number may be the same on another machine


def expert_rates(window: Window) -> Rates:
    """[L][E] pairs (token, expert) per second."""
    total: Rates = []
    for first, last in _ends(window, "expert_pairs").values():
        risen = [[count - _at(first, at, e) for e, count in enumerate(row)] for at, row in enumerate(last)]
        total = risen if not total else _sum(total, risen)
    return [[count / seconds(window) for count in row] for row in total]


def counter_rates(window: Window, *names: str) -> dict[Life, float]:
    """By life, what the counters under `stats` rose by per second, together."""
    ends = _ends(window, "stats")
    return {
        who: sum(last.get(name, 0.0) - first.get(name, 0.0) for name in names) / seconds(window)
        for who, (first, last) in ends.items()
    }


def seconds(window: Window) -> float:
    return max(1e-3, float(window[-1]["at_s"] - window[0]["at_s"]))


def _ends(window: Window, field: str) -> dict[Life, tuple[Any, Any]]:
    """By life, its first and last answer in the window."""
    ends: dict[Life, tuple[Any, Any]] = {}
    for snapshot in window:
        for actor in snapshot["actors"]:
            answer, who = actor[field], (actor["actor_id"], actor["incarnation"])
            if answer is not None:
                ends[who] = (ends[who][0] if who in ends else answer, answer)
    return ends


def _sum(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Rates:
    """Of two matrices; one that has not seen an expert yet has no layers."""
    if not one or not other:
        return [list(row) for row in one or other]
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


def _at(counts: Counts, layer: int, expert: int) -> int:
    return counts[layer][expert] if layer < len(counts) else 0
