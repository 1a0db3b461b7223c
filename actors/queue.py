"""Whose prompt is computed next.

Holds every sequence with prompt tokens to compute, with pages or without. Two classes share by weight, the
tenants of a class alike, both by tokens computed (actors/shares.py). Within a tenant the oldest sequence and
the one with the least left take turns: no prompt waits behind a longer one, and none waits for ever. Knows
nothing of pages, steps and time.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator

from actors.messages import Terms
from actors.sequence import Sequence
from actors.shares import Shares

WEIGHTS = {False: 9.0, True: 1.0}  # by is_batch: of ten tokens, when both classes wait

LineKey = tuple[bool, str]


class FairQueue:
    """A line per class and tenant."""

    def __init__(self) -> None:
        self._lines: dict[LineKey, _Line] = {}
        self._classes: Shares[bool] = Shares()
        self._tenants: dict[bool, Shares[str]] = {is_batch: Shares() for is_batch in WEIGHTS}
        self._members: set[Sequence] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        """Line by line, oldest first."""
        return (sequence for line in self._lines.values() for sequence in line.sequences)

    def add(self, sequence: Sequence) -> None:
        """Let it have its place by age; nothing happens if it is there already."""
        if sequence in self._members:
            return
        self._members.add(sequence)
        key = _key(sequence.terms)
        if key not in self._lines:
            self._lines[key] = _Line()
            self._join(key)
        insort(self._lines[key].sequences, sequence, key=lambda one: one.ticket)

    def discard(self, sequence: Sequence) -> None:
        """It has no prompt left, or is gone; nothing happens if it is not here."""
        if sequence not in self._members:
            return
        self._members.remove(sequence)
        key = _key(sequence.terms)
        line = self._lines[key]
        line.sequences.remove(sequence)
        if not line.sequences:
            del self._lines[key]
            self._leave(key)

    def next(self, may_go: Callable[[Sequence], bool]) -> Sequence | None:
        """Whose turn it is, of those that may go."""
        for is_batch in self._classes.in_turn():
            for tenant in self._tenants[is_batch].in_turn():
                chosen = self._lines[is_batch, tenant].next(may_go)
                if chosen is not None:
                    return chosen
        return None

    def serve(self, sequence: Sequence, num_tokens: int) -> None:
        """It had its turn: num_tokens of its prompt are computed."""
        self._lines[_key(sequence.terms)].note(sequence)
        self.charge(sequence, num_tokens)

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        """Tokens were computed for whoever owns it."""
        is_batch, tenant = _key(sequence.terms)
        self._classes.charge(is_batch, num_tokens / WEIGHTS[is_batch])
        self._tenants[is_batch].charge(tenant, num_tokens)

    def tokens_ahead(self, terms: Terms) -> float:
        """Prompt tokens to be computed, by everybody, before one that comes on these terms has its turn."""
        key = is_batch, tenant = _key(terms)
        own = self._lines[key].tokens_left if key in self._lines else 0
        tenants = len(self._tenants[is_batch]) + (tenant not in self._tenants[is_batch])
        classes = sum(WEIGHTS[one] for one in WEIGHTS if one == is_batch or one in self._classes)
        return min(self.tokens_left, own * tenants * classes / WEIGHTS[is_batch])

    @property
    def tokens_left(self) -> int:
        """Prompt tokens to be computed."""
        return sum(line.tokens_left for line in self._lines.values())

    def num_of(self, terms: Terms) -> int:
        """Sequences of this class and tenant."""
        line = self._lines.get(_key(terms))
        return len(line.sequences) if line else 0

    @property
    def num_lines(self) -> int:
        return len(self._lines)

    def _join(self, key: LineKey) -> None:
        is_batch, tenant = key
        if is_batch not in self._classes:
            self._classes.join(is_batch)
        self._tenants[is_batch].join(tenant)

    def _leave(self, key: LineKey) -> None:
        is_batch, tenant = key
        self._tenants[is_batch].leave(tenant)
        if not len(self._tenants[is_batch]):
            self._classes.leave(is_batch)


class _Line:
    """The sequences of one tenant in one class, oldest first."""

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self._is_oldest_due = True

    @property
    def tokens_left(self) -> int:
        return sum(map(_tokens_left, self.sequences))

    def next(self, may_go: Callable[[Sequence], bool]) -> Sequence | None:
        ready = filter(may_go, self.sequences)
        return next(ready, None) if self._is_oldest_due else min(ready, key=_tokens_left, default=None)

    def note(self, served: Sequence) -> None:
        self._is_oldest_due = served is not self.sequences[0]


def _key(terms: Terms) -> LineKey:
    return terms.is_batch, terms.tenant


def _tokens_left(sequence: Sequence) -> int:
    done = sequence.num_computed if sequence.pages else max(sequence.num_computed, sequence.num_known)
    return len(sequence.tokens) - done
