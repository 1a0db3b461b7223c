"""Who may wait, and what those are told who may not.

The queue is bounded, and a tenant may take as many of its places as are left free, so that one alone cannot
fill it. How long a newcomer would wait is the prompt tokens ahead of it over those computed per second while
somebody waited. Knows no clock: time comes as an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from actors.messages import FINISH_OVER_SHARE, FINISH_OVERLOADED, Terms
from actors.queue import FairQueue
from actors.sequence import Sequence

MEMORY_S = 30.0  # of waiting: older measurements fade
LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """finish: FINISH_OVER_SHARE or FINISH_OVERLOADED. retry_after_s: when it is worth another try."""

    finish: str
    error: str
    retry_after_s: float


class Rate:
    """Tokens per second, the last MEMORY_S counting most."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def note(self, num_tokens: int, seconds: float) -> None:
        faded = math.exp(-seconds / MEMORY_S)
        self._tokens = self._tokens * faded + num_tokens
        self._seconds = self._seconds * faded + seconds

    def seconds_for(self, num_tokens: float) -> float:
        """How long they will take; 0 before anything was measured."""
        if not num_tokens:
            return 0.0
        if not self._tokens:
            return self._seconds  # every place is taken, so far: as long again
        return min(LONGEST_WAIT_S, num_tokens * self._seconds / self._tokens)


class Admission:
    """The door of one queue. max_queue: most sequences with prompt tokens to compute."""

    def __init__(self, queue: FairQueue, max_queue: int) -> None:
        self._queue = queue
        self._max_queue = max_queue
        self._rate = Rate()
        self._step: tuple[float, int] | None = None  # when the last one began, prompt tokens in it

    def note_step(self, now_s: float, num_tokens: int) -> None:
        """A step begins that computes num_tokens of prompts; it counts if it leaves somebody waiting."""
        self._finish_step(now_s)
        self._step = (now_s, num_tokens) if len(self._queue) else None

    def rest(self) -> None:
        """Nobody waits any more: the time from now on is not theirs."""
        self._step = None

    def wait_s(self, terms: Terms) -> float:
        """How long a newcomer on these terms would wait for its turn."""
        return self._rate.seconds_for(self._queue.tokens_ahead(terms))

    @property
    def drain_s(self) -> float:
        """How long until all that waits has begun."""
        return self._rate.seconds_for(self._queue.tokens_left)

    def refusal(self, terms: Terms) -> Refusal | None:
        """Why nobody more may wait on these terms, or None."""
        if terms.is_promised:
            return None
        own, free = self._queue.num_of(terms), self._max_queue - len(self._queue)
        wait_s, longest_s = self.wait_s(terms), terms.max_wait_s
        if own + terms.num_together > free and (own or self._queue):  # who comes alone is let in whole
            return self._refuse(terms, f"{len(self._queue)} sequences wait, {own} of them yours")
        if longest_s is not None and wait_s > longest_s:
            return self._refuse(terms, f"the wait would be about {wait_s:.0f} s, over {longest_s:.0f} s")
        return None

    def overdue(self, now_s: float) -> list[tuple[Sequence, Refusal]]:
        """Those that have waited for longer than they may and have not begun."""
        waiting = [sequence for sequence in self._queue if not sequence.has_begun]
        late = [one for one in waiting if is_late(one.terms, one.since_s, now_s)]
        return [
            (one, self._refuse(one.terms, f"waited for {now_s - one.since_s:.0f} s without a turn"))
            for one in late
        ]

    def _finish_step(self, now_s: float) -> None:
        if self._step is not None:
            began_s, num_tokens = self._step
            self._rate.note(num_tokens, now_s - began_s)

    def _refuse(self, terms: Terms, reason: str) -> Refusal:
        queue = self._queue
        is_over_share = queue.num_of(terms) * queue.num_lines > len(queue)
        ahead = queue.tokens_ahead(terms) or queue.tokens_left  # full of others': until those have begun
        return Refusal(
            finish=FINISH_OVER_SHARE if is_over_share else FINISH_OVERLOADED,
            error=reason,
            retry_after_s=self._rate.seconds_for(ahead),
        )


def is_late(terms: Terms, since_s: float, now_s: float) -> bool:
    """Whether what came at since_s, and has not begun, has waited for longer than it may."""
    return terms.max_wait_s is not None and not terms.is_promised and now_s - since_s > terms.max_wait_s
