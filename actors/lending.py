"""An engine's final pages, for another actor to take over.

They are lent while their sequence goes on being computed, and have a reader more meanwhile, so that nobody
writes them. Knows nothing of sockets, nor of why a sequence goes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from actors.counters import HandoverCounters
from actors.intake import Intake
from actors.pace import Pace
from actors.pages import PagePool
from actors.prefix import Chain, PrefixCache
from actors.sequence import Sequence as LiveSequence
from model.cache import LatentCache

Sequences = Mapping[tuple[Hashable, str], LiveSequence]  # by owner and request id


class Lending:
    """prefixes: the names of pages, by which others know them."""

    def __init__(
        self, sequences: Sequences, pool: PagePool, prefixes: PrefixCache, cache: LatentCache
    ) -> None:
        self._sequences, self._pool = sequences, pool
        self._prefixes, self._cache = prefixes, cache

    @property
    def page_bytes(self) -> int:
        return self._cache.page_bytes

    def read(self, pages: Sequence[int]) -> bytes:
        """Of pages that were lent; from any thread."""
        return self._cache.read(pages)

    def intake(self, maker: str, counters: HandoverCounters) -> Intake:
        """For pages of other actors."""
        return Intake(self._pool, self._cache, maker, counters)

    def of(self, owner: Hashable) -> list[str]:
        """The ids of its living sequences."""
        return [request_id for whose, request_id in self._sequences if whose == owner]

    def num_pages(self, owner: Hashable) -> int:
        """That its living sequences have, final or not."""
        return sum(len(self._sequences[owner, request_id].pages) for request_id in self.of(owner))

    def wake_drafter(self, owner: Hashable) -> None:
        """Let the MTP layer read, with the next step, what it has not read: only then are pages whole."""
        for request_id in self.of(owner):
            self._sequences[owner, request_id].pace = Pace()

    def lend(self, owner: Hashable, request_id: str) -> Chain:
        """Of a living sequence, the pages that are final; to be taken back."""
        return self._prefixes.lend(self._sequences[owner, request_id])

    def take_back(self, chain: Chain) -> None:
        self._prefixes.take_back(chain)
