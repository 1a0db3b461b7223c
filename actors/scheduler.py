"""Who computes what in the next step.

Continuous batching: every decoding sequence gets its token, and beside them the step carries one chunk of
prompts at most, so that the time between tokens is bounded. Prompts are cut at absolute multiples of the
chunk size; whose is next is the queue's to say (actors/queue.py). When pages run out somebody is sent back to
wait and recomputed later, batch before interactive, the youngest first; the first in that order advances
always, so there is no deadlock. Pure policy: knows nothing of tensors, sockets or clocks.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from actors.admission import Admission, Refusal
from actors.messages import Terms
from actors.pages import PagePool, pages_for
from actors.prefix import PrefixCache
from actors.queue import FairQueue
from actors.sequence import Sequence
from model.cache import PAGE_TOKENS


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerLimits:
    """max_sequences: in one step.

    max_step_tokens: decode, prefill and drafts together. chunk_tokens: prefill grid, and the most prefill
    that a step carries beside decoding sequences. max_queue: most sequences whose prompt is not computed.
    """

    max_sequences: int = 64
    max_step_tokens: int = 512
    chunk_tokens: int = 128
    max_queue: int = 1024

    def __post_init__(self) -> None:
        if min(self.chunk_tokens, self.max_sequences, self.max_queue) < 1:
            raise ValueError("chunk_tokens, max_sequences and max_queue must be at least 1")
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
    """Holds the sequences: `running` have pages; `sent_back` had them and come first when some are free."""

    def __init__(
        self, pool: PagePool, limits: SchedulerLimits, *, prefixes: PrefixCache | None = None
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._prefixes = prefixes
        self._queue = FairQueue()  # whose prompt is not computed, with pages or without
        self._admission = Admission(self._queue, limits.max_queue)
        self._num_tickets = 0
        self.running: list[Sequence] = []
        self.sent_back: list[Sequence] = []  # oldest first
        self.num_preemptions = 0
        self.num_again_tokens = 0  # that were computed before, here or elsewhere

    @property
    def has_work(self) -> bool:
        return bool(self._queue or self.running)

    @property
    def waiting(self) -> list[Sequence]:
        """Those without pages."""
        return [sequence for sequence in self._queue if not sequence.pages]

    def refusal(self, terms: Terms) -> Refusal | None:
        """Why a sequence on these terms may not be added now, or None."""
        return self._admission.refusal(terms)

    def overdue(self, now_s: float) -> list[tuple[Sequence, Refusal]]:
        """Those that have waited too long to begin, and what to tell them; the caller removes them."""
        return self._admission.overdue(now_s)

    def wait_s(self) -> float:
        """How long until all that waits has begun, estimated."""
        return self._admission.drain_s

    def add(self, sequence: Sequence, now_s: float = 0.0) -> None:
        self._num_tickets += 1
        sequence.ticket, sequence.since_s = self._num_tickets, now_s
        if self._prefixes:
            sequence.num_known = len(self._prefixes.find(sequence)) * PAGE_TOKENS
        self._queue.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or cancelled, and free its pages."""
        for held in (self.running, self.sent_back):
            if sequence in held:
                held.remove(sequence)
        self._queue.discard(sequence)
        if not self._queue:
            self._admission.rest()
        self._pool.give_back(sequence.pages)

    def plan(self, now_s: float = 0.0) -> list[Work]:
        """The next step, with its pages taken; empty when nothing can run."""
        planned = self._plan_decodes()
        room = self._limits.max_step_tokens - sum(work.num_tokens + work.num_drafts for work in planned)
        if planned:
            room = min(room, self._limits.chunk_tokens)
        while self.sent_back and self._start(self.sent_back[0]):
            self.sent_back.pop(0)
        self._admission.note_step(now_s, self._plan_chunks(room, planned))
        return planned

    def _plan_decodes(self) -> list[Work]:
        """A token of every decoding sequence, and its drafts as far as there is room."""
        spare = self._limits.spare_tokens
        planned: list[Work] = []
        for sequence in sorted((s for s in self.running if s.is_decoding), key=_rank):
            if sequence.pages and self._make_room(sequence):
                num_drafts = self._make_room_for_drafts(sequence, spare)
                planned.append(Work(sequence, 1, num_drafts))
                spare -= num_drafts
                self._queue.charge(sequence, 1 + num_drafts)
                self._queue.discard(sequence)  # where this token was the last of its prompt
        return planned

    def _plan_chunks(self, room: int, planned: list[Work]) -> int:
        """Add chunks of prompts in turn; returns their tokens.

        Whoever cannot begin for want of pages has all others wait who would: else it might wait for ever.
        """
        is_open, num_tokens = not self.sent_back, 0
        taken: set[Sequence] = set()

        def may_go(sequence: Sequence) -> bool:
            is_ready = bool(sequence.pages) or is_open
            return is_ready and sequence not in taken and self._chunk_of(sequence) <= room

        while room > 0 and (sequence := self._queue.next(may_go)) is not None:
            if not sequence.pages:
                if not sequence.terms.is_batch:
                    planned[:] = self._make_way(sequence, planned, taken)
                if not self._start(sequence):
                    is_open = False
                    continue
            work = Work(sequence, self._chunk_of(sequence))
            room, num_tokens = room - work.num_tokens, num_tokens + work.num_tokens
            taken.add(sequence)
            planned.append(work)
            self._queue.serve(sequence, work.num_tokens)
            if work.reaches_end:
                self._queue.discard(sequence)
        return num_tokens

    def _chunk_of(self, sequence: Sequence) -> int:
        """Prompt tokens up to the next multiple of the chunk size: cuts are absolute."""
        chunk = self._limits.chunk_tokens
        end = min(len(sequence.tokens), (sequence.num_computed // chunk + 1) * chunk)
        return end - sequence.num_computed

    def _start(self, sequence: Sequence) -> bool:
        """Give it pages for all its tokens and one more, if they are free."""
        shared, missing = self._pages_of(sequence)
        if len(self.running) >= self._limits.max_sequences or not self._pool.can_take(missing, beside=shared):
            return False
        if self._prefixes:
            self._prefixes.begin(sequence, shared)
        if sequence.num_emitted or sequence.num_restarts:
            self.num_again_tokens += len(sequence.tokens) - sequence.num_computed
        sequence.pages += self._pool.take(missing)
        self.running.append(sequence)
        self._queue.recount(sequence)
        return True

    def _pages_of(self, sequence: Sequence) -> tuple[list[int], int]:
        """Pages that it can share, and how many it needs beside them."""
        shared = self._prefixes.find(sequence) if self._prefixes else []
        return shared, pages_for(len(sequence.tokens) + 1) - len(shared)

    def _make_way(self, sequence: Sequence, planned: list[Work], taken: set[Sequence]) -> list[Work]:
        """Send back the fewest batch sequences, youngest first, that let this one in; nobody for nothing.

        Those whose chunk is in this step stay: it is their share. Returns what is left of the plan.
        """
        places = self._limits.max_sequences - len(self.running)
        shared, missing = self._pages_of(sequence)
        candidates = sorted((s for s in self.running if _gives_way(s) and s not in taken), key=_rank)
        chosen: list[Sequence] = []

        def fits() -> bool:
            freed = self._pool.num_freed_by([one.pages for one in chosen], beside=shared)
            return places + len(chosen) > 0 and self._pool.can_take(missing - freed, beside=shared)

        while candidates and not fits():
            chosen.append(candidates.pop())
        if not fits():
            return planned
        for one in chosen:
            self.send_back(one)
        return [work for work in planned if work.sequence not in chosen]

    def _make_room(self, sequence: Sequence) -> bool:
        """Pages for a token more; sends others back if it must.

        False: it was sent back itself.
        """
        missing = pages_for(sequence.num_computed + 1) - len(sequence.pages)
        while missing > 0 and not self._pool.can_take(missing):
            last = max(self.running, key=_rank)
            self.send_back(last)
            if last is sequence:
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
        if not _gives_way(sequence):
            insort(self.sent_back, sequence, key=lambda one: one.ticket)
        sequence.restart()
        self._queue.add(sequence)
        self.num_preemptions += 1


def _gives_way(sequence: Sequence) -> bool:
    """Whether it is sent back before others whatever its age: batch, once."""
    return sequence.terms.is_batch and sequence.num_restarts == 0


def _rank(sequence: Sequence) -> tuple[bool, int]:
    """The last in this order is sent back first."""
    return _gives_way(sequence), sequence.ticket
