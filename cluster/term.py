"""One life in a seat: it loads, then it serves.

Of an expert actor also what it holds, and what of that the view shows. Knows nothing of the seat's other
terms, nor of why experts come and go.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.options import Loaded
from cluster.hosts import pid_here
from cluster.life import Life
from cluster.processes import Answer
from router.view import Pair

NOTHING: frozenset[Pair] = frozenset()


@dataclass(slots=True)
class Term:
    """`life` without `loaded` is still loading, or waits for its load to be asked for.

    held: once it has loaded. shown: of these, what the view says that it holds; since which epoch. work: it
    takes or drops experts.
    """

    life: Life
    loading: Answer | None = None
    loaded: Loaded | None = None
    held: frozenset[Pair] = NOTHING
    shown: frozenset[Pair] = NOTHING
    shown_since: int = 0
    work: Answer | None = None
    taking: frozenset[Pair] = NOTHING
    pause_until_s: float = 0.0  # after a take that failed

    @property
    def is_active(self) -> bool:
        return self.loaded is not None

    @property
    def pending(self) -> list[Answer]:
        """What it owes an answer to."""
        return [answer for answer in (self.life.pulse, self.loading, self.work) if answer is not None]

    def take_up(self, loaded: Loaded) -> None:
        """It has loaded; whoever asks is answered from now on."""
        self.loading, self.loaded = None, loaded
        self.life.pid = pid_here(loaded.host, loaded.pid)
        self.life.ask("run")

    @staticmethod
    def adopted(life: Life, loaded: Loaded, held: frozenset[Pair]) -> Term:
        """One that an earlier controller began, and that serves."""
        life.pid = pid_here(loaded.host, loaded.pid)
        return Term(life=life, loaded=loaded, held=held, shown=held)  # who knows what the newest view shows
