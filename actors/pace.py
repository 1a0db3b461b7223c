"""Whether drafting pays for one sequence.

A plain rule over what was accepted lately, the same for the same history: drafting rests when a window of
verified steps gained too little, and is tried again after a while that doubles with each failure. It decides
speed, never text. Knows nothing of tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_STEPS = 16
LEAST_ACCEPTED = 0.4  # drafts a step; docs/performance.md has what a draft costs
SHORTEST_REST_TOKENS = 32
LONGEST_REST_TOKENS = 256


@dataclass(slots=True)
class Pace:
    """resting_tokens: how many more tokens come without drafts."""

    resting_tokens: int = 0
    _next_rest: int = SHORTEST_REST_TOKENS
    _accepted: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))

    @property
    def is_resting(self) -> bool:
        return self.resting_tokens > 0

    def note(self, num_drafts: int, num_accepted: int) -> None:
        """A step is verified; one without drafts counts towards the rest."""
        if not num_drafts:
            self.resting_tokens = max(0, self.resting_tokens - 1)
            return
        self._accepted.append(num_accepted)
        if len(self._accepted) < WINDOW_STEPS:
            return
        if sum(self._accepted) >= LEAST_ACCEPTED * WINDOW_STEPS:
            self._next_rest = SHORTEST_REST_TOKENS
            return
        self.rest()

    def rest(self) -> None:
        """Draft no more for a while."""
        self.resting_tokens = self._next_rest
        self._next_rest = min(2 * self._next_rest, LONGEST_REST_TOKENS)
        self._accepted.clear()
