"""Who writes where: one lane of memory for one life.

What a lost process has begun to write may still arrive, so its lane is read by nobody and given to nobody
until its end is certain. Knows nothing of what lies in a lane.

Errors: LanesTaken.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.transport import RouterError


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """One process that was an actor; a replacement has the same id and a higher incarnation."""

    actor: str
    incarnation: int


class LanesTaken(RouterError):  # noqa: N818 - named for what happened, as the rest of the tree
    """Every lane belongs to a life that is not known to have ended."""


class Lanes:
    """Lanes first .. first + count - 1."""

    def __init__(self, count: int, *, first: int = 0) -> None:
        self._free = list(range(first, first + count))
        self._taken: dict[Life, int] = {}
        self._lost: set[Life] = set()
        self._buried: set[Life] = set()

    @property
    def live(self) -> dict[Life, int]:
        """Lanes whose writer is believed."""
        return {life: lane for life, lane in self._taken.items() if life not in self._lost}

    def open(self, life: Life) -> int:
        """A lane that nobody else alive can write to. Raises LanesTaken, and ValueError for a second one."""
        if life in self._taken or life in self._buried:
            raise ValueError(
                f"{life.actor} had a lane in life {life.incarnation}: a new one needs a new life"
            )
        if not self._free:
            lost = ", ".join(sorted(f"{life.actor}/{life.incarnation}" for life in self._lost)) or "none"
            raise LanesTaken(f"no lane for {life.actor}: {len(self._taken)} taken, of them lost: {lost}")
        self._taken[life] = self._free.pop(0)
        return self._taken[life]

    def lose(self, life: Life) -> None:
        """Believe it no more; it may still write."""
        if life in self._taken:
            self._lost.add(life)

    def bury(self, life: Life) -> None:
        """Its process has ended and its device with it: the lane is free."""
        if life in self._taken:
            self._free.append(self._taken.pop(life))
            self._lost.discard(life)
            self._buried.add(life)
