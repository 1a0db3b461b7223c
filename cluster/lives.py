"""Where lives come from: new, or waiting, warm.

Numbers them, each number once and for ever. Knows nothing of what they are to be.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.life import Life
from cluster.processes import Processes


class Lives:
    """count: notes down that so many were begun, before another is."""

    def __init__(
        self, processes: Processes, num_begun: int, count: Callable[[], None], num_standbys: int
    ) -> None:
        self.num_begun = num_begun
        self.standbys: list[Life] = []
        self._processes, self._count, self._num_standbys = processes, count, num_standbys

    def next(self, seat: str | None = None, *, is_urgent: bool = True) -> Life:
        """A warm one; one that warms up, politely, would take longer than a new one. seat: that it needs.

        is_urgent: else a new one warms up politely, too.
        """
        warm = [life for life in self.standbys if not life.is_busy()]
        if not warm:
            life = self._begin(seat)
            if not is_urgent:
                life.do("warm")
            return life
        self.standbys.remove(warm[0])
        return warm[0]

    def keep_warm(self, listened_s: float, patience_s: float, renew_upto: int, *, may_begin: bool) -> None:
        """Replace those that are over, and those of a number that is to be replaced."""
        for life in list(self.standbys):
            if isinstance(life.check(listened_s, patience_s), str) or (
                may_begin and life.number <= renew_upto
            ):
                life.end()
                self.standbys.remove(life)
        if may_begin and len(self.standbys) < self._num_standbys:
            life = self._begin()
            life.do("warm")
            self.standbys.append(life)

    def _begin(self, seat: str | None = None) -> Life:
        self.num_begun += 1
        self._count()
        process = self._processes.spawn(self.num_begun, seat)
        return Life(self.num_begun, process, waits=seat is not None)
