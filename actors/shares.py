"""Fair queueing: who has had the least for its weight.

Virtual time: every flow has spent the tokens that it was given, over its weight, and the one that has spent
least is next. A flow that comes back starts level with the least of those that wait, so idling earns nothing;
what a flow is given while others wait is a debt, forgiven when nobody waits. Knows nothing of sequences.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

F = TypeVar("F", bound=Hashable)


class Shares(Generic[F]):
    """What each flow has spent; those that wait are kept in the order in which they came."""

    def __init__(self) -> None:
        self._spent: dict[F, float] = {}
        self._waiting: dict[F, None] = {}

    def __contains__(self, flow: F) -> bool:
        return flow in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, flow: F) -> None:
        """From now on the flow waits."""
        self._spent[flow] = self._level(flow)
        self._waiting[flow] = None

    def leave(self, flow: F) -> None:
        """It waits no more. Its debt is kept while it is ahead of somebody who does."""
        del self._waiting[flow]
        floor = self._floor()
        kept = self._spent if self._waiting else {}
        self._spent = {one: spent for one, spent in kept.items() if one in self._waiting or spent > floor}

    def charge(self, flow: F, cost: float) -> None:
        """The flow was given something, whether it waits or not; free while nobody does."""
        if self._waiting:
            self._spent[flow] = self._level(flow) + cost

    def in_turn(self) -> list[F]:
        """Those that wait, the next one first."""
        return sorted(self._waiting, key=self._spent.__getitem__)

    def _level(self, flow: F) -> float:
        floor = self._floor()
        return max(self._spent.get(flow, floor), floor)

    def _floor(self) -> float:
        return min((self._spent[flow] for flow in self._waiting), default=0.0)
