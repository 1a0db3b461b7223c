"""What every slot of the cache holds, in the books of a test.

Whoever shares a page must find in it what it would have written, nobody may write what others read, and
published pages go in the order in which they were left. Knows nothing of scheduling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from actors.pages import PagePool
from actors.sequence import Sequence
from model.cache import PAGE_TOKENS


class Ledger:
    """Of one pool. `note` what a step does in the order in which an engine does it, `check` at rest."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._slots: dict[int, dict[int, int]] = {}  # a mark of salt and every token up to the slot's own
        self._parents: dict[bytes, bytes] = {}
        self._left: list[int] = []  # published pages without a reader, in the order in which they were left

    def note_plan(self) -> None:
        """Pages were taken: those that were left first, among those that nobody came back to."""
        pool, left = self._pool, self._left
        gone = [page for page in left if page not in pool._names]
        rest = [page for page in left if page not in gone and not pool._readers[page]]
        assert not gone or not rest or left.index(gone[-1]) < left.index(rest[0])
        self._left = rest
        for page in pool.unclean():
            self._slots[page] = {}

    def note_computed(self, sequence: Sequence, num_tokens: int) -> None:
        """The next num_tokens of the sequence read what is before them and are written."""
        pool, start = self._pool, sequence.num_computed
        held = [self._slots[page].get(slot) for page in sequence.pages for slot in range(PAGE_TOKENS)]
        marks, mark = [], hash(sequence.terms.page_salt)
        for token in sequence.tokens[: start + num_tokens]:
            marks.append(mark := hash((mark, token)))
        assert held[:start] == marks[:start], "it reads what it would have written"
        for place in range(start, start + num_tokens):
            page = sequence.pages[place // PAGE_TOKENS]
            assert pool._readers[page] == 1 and page not in pool._names, "nobody else reads it"
            self._slots[page][place % PAGE_TOKENS] = marks[place]

    def note_published(self, sequence: Sequence) -> None:
        self._left = [page for page in self._left if not self._pool._readers[page]]  # somebody came back
        self._parents.update((child, parent) for parent, child in pairwise(sequence.page_keys))

    def check(self, live: Iterable[Sequence]) -> None:
        pool = self._pool
        read = Counter(page for sequence in live for page in sequence.pages)
        assert pool._readers == [read[page] for page in range(pool.num_pages + 1)]
        everywhere = [*pool._free, *pool._idle, *read]
        assert sorted(everywhere) == list(range(1, pool.num_pages + 1)), "each page in one place"
        assert not set(pool._free) & set(pool._names)
        assert set(pool._idle) <= set(pool._names)
        assert {page: name for name, page in pool._published.items()} == pool._names
        for name in pool._published:
            assert self._parents.get(name) in (None, *pool._published), "children go before parents"
        self._left = [page for page in self._left if page in pool._idle]
        self._left += [page for page in pool._idle if page not in self._left]
