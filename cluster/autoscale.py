"""How many actors there should be, from what they do.

Attention actors follow queueing, sequences and pages, expert actors the share of time in which they compute.
More come soon, fewer late: what is seen must hold for several looks, and after a change nothing changes for a
while. Pure; knows nothing of fleets. Every decision says its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """least and most actors of a kind; equal: their number is left alone."""

    least: int
    most: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """high, low: of a utilisation, above which one more comes and below which one goes.

    wait_s: a queue that is longer is too long, whatever the utilisation. patience: looks in a row. rest_s:
    after a change before one more, or one less.
    """

    high: float = 0.8
    low: float = 0.4
    wait_s: float = 5.0
    patience_up: int = 2
    patience_down: int = 12
    rest_up_s: float = 15.0
    rest_down_s: float = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Of one kind: how many serve, how busy they are (1: as much as they can), what waits."""

    count: int
    utilisation: float
    wait_s: float = 0.0
    what: str = "utilisation"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """count: of actors of the kind from now on."""

    kind: str
    count: int
    reason: str


@dataclass(slots=True)
class _Streak:
    looks_up: int = 0
    looks_down: int = 0
    changed_s: float = float("-inf")


@dataclass(slots=True)
class Autoscaler:
    """bounds: by kind; a kind that is not named is left alone."""

    bounds: Mapping[str, Bounds]
    target: Target = Target()
    _streaks: dict[str, _Streak] = field(default_factory=dict)

    def decide(self, kind: str, seen: Seen, now_s: float) -> Decision | None:
        """One more, one less, or as it is."""
        bounds = self.bounds.get(kind)
        if bounds is None or not seen.count:
            return None
        if not bounds.least <= seen.count <= bounds.most:
            count = min(max(seen.count, bounds.least), bounds.most)
            return self._change(kind, count, f"bounds are {bounds.least} to {bounds.most}", now_s)
        streak, target = self._streaks.setdefault(kind, _Streak()), self.target
        needs_more = seen.utilisation > target.high or seen.wait_s > target.wait_s
        # One less must not make the others need one more at once.
        without = seen.utilisation * seen.count / max(1, seen.count - 1)
        needs_less = seen.utilisation < target.low and without < target.high and not seen.wait_s
        streak.looks_up = streak.looks_up + 1 if needs_more else 0
        streak.looks_down = streak.looks_down + 1 if needs_less else 0
        since_s = now_s - streak.changed_s
        if streak.looks_up >= target.patience_up and seen.count < bounds.most and since_s >= target.rest_up_s:
            return self._change(kind, seen.count + 1, _reason(seen, target), now_s)
        if (
            streak.looks_down >= target.patience_down
            and seen.count > bounds.least
            and since_s >= target.rest_down_s
        ):
            why = f"{seen.what} {seen.utilisation:.0%} is below {target.low:.0%}, nothing waits"
            return self._change(kind, seen.count - 1, why, now_s)
        return None

    def _change(self, kind: str, count: int, reason: str, now_s: float) -> Decision:
        self._streaks[kind] = _Streak(changed_s=now_s)
        return Decision(kind=kind, count=count, reason=reason)


def _reason(seen: Seen, target: Target) -> str:
    if seen.utilisation > target.high:
        return f"{seen.what} {seen.utilisation:.0%} is above {target.high:.0%}"
    return f"what waits begins in {seen.wait_s:.0f} s, more than {target.wait_s:g} s"
