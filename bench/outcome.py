"""What became of the requests of an open loop, and the figures made of it.

Times count from when a request was due, so that waiting for a turn counts. Knows nothing of how requests were
asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KEPT = 0.9  # of the requests, within the limits: then a rate counts as served


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of each request: until its first token, and per token after it."""

    ttft_s: float
    tpot_s: float


@dataclass(kw_only=True, slots=True)
class Outcome:
    """Of one request; seconds of one clock. error: why it is not whole, None if it is."""

    due_s: float
    wanted_tokens: int
    num_tokens: int = 0
    first_s: float | None = None
    last_s: float | None = None
    error: str | None = None

    def take(self, num_tokens: int, now_s: float) -> None:
        """So many tokens have come."""
        self.num_tokens += num_tokens
        self.first_s = now_s if self.first_s is None else self.first_s
        self.last_s = now_s

    @property
    def ttft_s(self) -> float:
        return float("inf") if self.first_s is None else self.first_s - self.due_s

    @property
    def tpot_s(self) -> float:
        """Mean of the tokens after the first."""
        if self.first_s is None or self.last_s is None:
            return float("inf")
        return (self.last_s - self.first_s) / max(1, self.num_tokens - 1)

    def keeps(self, limits: Limits) -> bool:
        return self.error is None and self.ttft_s <= limits.ttft_s and self.tpot_s <= limits.tpot_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One system at one rate. foreign_cores: CPU that other processes took meanwhile."""

    rate: float
    outcomes: tuple[Outcome, ...] = field(repr=False)
    foreign_cores: float

    def kept(self, limits: Limits) -> float:
        """Share of the requests within the limits."""
        return sum(one.keeps(limits) for one in self.outcomes) / len(self.outcomes)

    def is_served(self, limits: Limits) -> bool:
        return self.kept(limits) >= KEPT

    def figures(self, limits: Limits) -> dict[str, Any]:
        """What a program reads; milliseconds are of those that had a token, p50 and p90."""
        whole = [one for one in self.outcomes if one.error is None]
        return {
            "rate": round(self.rate, 3),
            "requests": len(self.outcomes),
            "whole": len(whole),
            "kept": round(self.kept(limits), 3),
            "goodput": round(self.rate * self.kept(limits), 3),
            "tokens_per_s": tokens_per_s(self.outcomes),
            "ttft_ms": _ms([one.ttft_s for one in self.outcomes if one.first_s is not None]),
            "tpot_ms": _ms([one.tpot_s for one in self.outcomes if one.num_tokens > 1]),
            "foreign_cores": round(self.foreign_cores, 2),
        }


def tokens_per_s(outcomes: Sequence[Outcome]) -> float:
    """From when the first was due to the last token."""
    ends = [one.last_s for one in outcomes if one.last_s is not None]
    if not ends:
        return 0.0
    return round(
        sum(one.num_tokens for one in outcomes) / (max(ends) - min(one.due_s for one in outcomes)), 1
    )


def _ms(seconds: list[float]) -> list[float] | None:
    return [round(float(value) * 1e3, 1) for value in np.percentile(seconds, [50, 90])] if seconds else None
