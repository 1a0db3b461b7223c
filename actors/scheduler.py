"""Who computes what in the next step.

Continuous batching: every decoding sequence gets its token, and prompts are prefilled in chunks cut at
absolute multiples of the chunk size, first come first served, under a token budget. When pages run out the
youngest sequence is sent back to wait and recomputed later; the oldest always advances, so there is no
deadlock. Pure policy: knows nothing of tensors, sockets or time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from actors.pages import PagePool, pages_for
from actors.prefix import PrefixCache
from actors.sequence import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerLimits:
    """max_sequences: in one step.

    max_step_tokens: decode, prefill and drafts together. chunk_tokens: prefill grid.
    """

    max_sequences: int = 64
    max_step_tokens: int = 512
    chunk_tokens: int = 128

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1 or self.max_sequences < 1:
            raise ValueError("chunk_tokens and max_sequences must be at least 1")
        least = self.max_step_tokens - self.spare_tokens
        if self.spare_tokens < 0:  # else a prompt could wait for ever behind those that decode
            raise ValueError(
                f"max_step_tokens is {self.max_step_tokens}: must be at least {least}, a chunk of "
                f"{self.chunk_tokens} beside {self.max_sequences - 1} sequences that decode"
            )

    @property
    def spare_tokens(self) -> int:
        """Room for drafts: what a chunk beside all others' tokens leaves of a step."""
        return self.max_step_tokens - (self.max_sequences - 1 + self.chunk_tokens)


@dataclass(frozen=True, slots=True)
class Work:
    """The next num_tokens tokens of a sequence, and the first num_drafts of its drafts to verify."""

    sequence: Sequence
    num_tokens: int
    num_drafts: int = 0

    @property
    def reaches_end(self) -> bool:
        """Whether a token is drawn after it."""
        return self.sequence.num_computed + self.num_tokens == len(self.sequence.tokens)


class Scheduler:
    """Holds the sequences: `waiting` have no pages, `running` (oldest first) have."""

    def __init__(
        self, pool: PagePool, limits: SchedulerLimits, *, prefixes: PrefixCache | None = None
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._prefixes = prefixes
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or cancelled, and free its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._pool.give_back(sequence.pages)

    def plan(self) -> list[Work]:
        """The next step, with its pages taken; empty when nothing can run."""
        budget, spare = self._limits.max_step_tokens, self._limits.spare_tokens
        planned: list[Work] = []
        for sequence in [s for s in self.running if s.is_decoding]:
            if sequence in self.running and self._make_room(sequence):
                num_drafts = self._make_room_for_drafts(sequence, spare)
                planned.append(Work(sequence, 1, num_drafts))
                budget -= 1 + num_drafts
                spare -= num_drafts
        planned = [work for work in planned if work.sequence in self.running]
        for sequence in [s for s in self.running if not s.is_decoding]:
            budget -= self._plan_chunk(sequence, budget, planned)
        while self.waiting and budget > 0 and len(self.running) < self._limits.max_sequences:
            spent = self._admit(self.waiting[0], budget, planned)
            if not spent:
                break
            budget -= spent
        return planned

    def _admit(self, sequence: Sequence, budget: int, planned: list[Work]) -> int:
        """Start the first waiting sequence if its whole prompt has pages now; returns tokens planned."""
        shared = self._prefixes.find(sequence) if self._prefixes else []
        missing = pages_for(len(sequence.tokens) + 1) - len(shared)
        if not self._pool.can_take(missing, beside=shared):
            return 0
        if self._prefixes:
            self._prefixes.begin(sequence, shared)
        sequence.pages += self._pool.take(missing)
        self.waiting.popleft()
        self.running.append(sequence)
        return self._plan_chunk(sequence, budget, planned)

    def _plan_chunk(self, sequence: Sequence, budget: int, planned: list[Work]) -> int:
        """Plan prefill up to the next multiple of the chunk size.

        Whole chunks or nothing, so that cuts are absolute.
        """
        chunk = self._limits.chunk_tokens
        end = min(len(sequence.tokens), (sequence.num_computed // chunk + 1) * chunk)
        count = end - sequence.num_computed
        if count > budget:
            return 0
        planned.append(Work(sequence, count))
        return count

    def _make_room(self, sequence: Sequence) -> bool:
        """Pages for a token more; sends the youngest others back if it must.

        False: it was sent back itself.
        """
        missing = pages_for(sequence.num_computed + 1) - len(sequence.pages)
        while missing > 0 and not self._pool.can_take(missing):
            youngest = self.running[-1]
            self.send_back(youngest)
            if youngest is sequence:
                return False
        if missing > 0:
            sequence.pages += self._pool.take(missing)
        return True

    def _make_room_for_drafts(self, sequence: Sequence, spare: int) -> int:
        """How many drafts can be verified; nobody is sent back for a guess."""
        num_drafts = min(len(sequence.drafts), spare)
        missing = pages_for(sequence.num_computed + 1 + num_drafts) - len(sequence.pages)
        if missing > 0:
            if not self._pool.can_take(missing):
                return 0
            sequence.pages += self._pool.take(missing)
        return num_drafts

    def send_back(self, sequence: Sequence) -> None:
        """Take a running sequence's pages; it is computed again when there is room."""
        self.running.remove(sequence)
        self._pool.give_back(sequence.pages)
        sequence.restart()
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1
