"""Sequences that may be what ended another actor.

They are computed one after another, and each is announced before it is: should this actor end as well, it is
plain by whom. Whoever has made PROOF_TOKENS has proved itself and is one among all. Knows nothing of how an
actor ends, nor of who counts it.
"""

from __future__ import annotations

from actors.messages import PROOF_TOKENS
from actors.sequence import Sequence


class Suspects:
    """In the order in which they came; at most one of them is let in, and on trial."""

    def __init__(self) -> None:
        self._waiting: list[Sequence] = []
        self._on_trial: Sequence | None = None
        self._proved_at = 0  # emitted tokens of the one on trial

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def discard(self, sequence: Sequence) -> None:
        """It has ended, or is not wanted any more."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        if sequence is self._on_trial:
            self._on_trial = None

    def next(self) -> Sequence | None:
        """Who is let in now, if anybody."""
        if self._on_trial is not None and self._on_trial.num_emitted < self._proved_at:
            return None
        self._on_trial = self._waiting.pop(0) if self._waiting else None
        if self._on_trial is not None:
            self._proved_at = self._on_trial.num_emitted + PROOF_TOKENS
        return self._on_trial
