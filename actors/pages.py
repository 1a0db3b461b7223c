"""The page pool: who reads which page of the cache.

A page has any number of readers. One that was published bears a name: when its last reader leaves it keeps
what it holds and is found by its name, until its place is needed. Page 0 is the null page of model/batch.py
and never handed out. Knows nothing of what the pages hold and of what their names mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from actors.idle_pages import IdlePages
from model.cache import PAGE_TOKENS


class PagePool:
    """Free pages come first, the most recently freed of them while it is still in the CPU's caches.

    Then published pages without a reader, of the tenant with the most those first that were left first.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages is {num_pages}: at least 2, one of them the null page")
        self.num_pages = num_pages - 1
        self.num_evicted = 0
        self._free = list(range(num_pages - 1, 0, -1))
        self._idle = IdlePages()
        self._tenants: dict[int, str] = {}  # of published pages
        self._readers = [0] * num_pages
        self._names: dict[int, bytes] = {}
        self._published: dict[bytes, int] = {}
        self._unclean: list[int] = []

    @property
    def num_free(self) -> int:
        """Pages without a reader, published or not: all can be taken."""
        return len(self._free) + len(self._idle)

    @property
    def num_published(self) -> int:
        return len(self._published)

    def can_take(self, count: int, *, beside: Sequence[int] = ()) -> bool:
        """Whether `count` pages are free; `beside`: pages that are to be shared as well."""
        return count <= self.num_free - sum(page in self._idle for page in beside)

    def num_freed_by(self, leaving: Iterable[Sequence[int]], *, beside: Sequence[int] = ()) -> int:
        """How many pages are free once the readers of these lists have left; `beside`: pages to be shared."""
        lost = Counter(page for pages in leaving for page in pages)
        return sum(self._readers[page] == count for page, count in lost.items() if page not in beside)

    def take(self, count: int) -> list[int]:
        """count pages; ask can_take first."""
        assert self.can_take(count), f"{count} pages wanted, {self.num_free} free"
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for page in taken:
            self._readers[page] = 1
        self._unclean += taken
        return taken

    def unclean(self) -> list[int]:
        """The pages taken since the last call: they still hold what their last owner wrote."""
        unclean, self._unclean = self._unclean, []
        return unclean

    def give_back(self, pages: list[int]) -> None:
        """One reader of each leaves; empties the list.

        The last page first: what is left first is evicted first, and a page is of no use without those before
        it.
        """
        for page in reversed(pages):
            self._leave(page)
        pages.clear()

    def find(self, name: bytes) -> int | None:
        """The page published under `name`; it may be evicted unless it is shared at once."""
        return self._published.get(name)

    def share(self, pages: Sequence[int], tenant: str = "") -> list[int]:
        """One reader more for each of these pages, which find has found; tenant: whose they are, if known.

        Pages that were adopted are nobody's until then.
        """
        for page in pages:
            assert page in self._names, f"page {page} is not published"
            self._idle.discard(page)
            self._readers[page] += 1
            self._tenants[page] = tenant or self._tenants[page]
        return list(pages)

    def publish(self, page: int, name: bytes, tenant: str = "") -> int:
        """Name a page that is read, and will never be written again; returns the page to read from now on.

        That is another if an equal one bears the name already: this one is left.
        """
        assert self._readers[page] and page not in self._names, f"page {page} is free or published"
        known = self._published.get(name)
        if known is not None:
            self.share([known])
            self._leave(page)
            return known
        self._name(page, name, tenant)
        return page

    def adopt(self, name: bytes) -> int:
        """A page under a name that nobody has, with one reader, to be written whole at once; ask can_take."""
        assert name not in self._published, "published already"
        [page] = self.take(1)
        self._unclean.remove(page)
        self._name(page, name, "")
        return page

    def withdraw(self, pages: Sequence[int]) -> None:
        """Nobody shall find these any more; their readers, which they must have, go on."""
        for page in pages:
            assert self._readers[page], f"page {page} has no reader"
            if page in self._names:
                self._unname(page)

    def _leave(self, page: int) -> None:
        assert self._readers[page] > 0, f"page {page} has no reader"
        self._readers[page] -= 1
        if self._readers[page]:
            return
        if page in self._names:
            self._idle.add(page, self._tenants[page])
        else:
            self._free.append(page)

    def _evict(self) -> int:
        page = self._idle.pop()
        self._unname(page)
        self.num_evicted += 1
        return page

    def _name(self, page: int, name: bytes, tenant: str) -> None:
        self._names[page] = name
        self._published[name] = page
        self._tenants[page] = tenant

    def _unname(self, page: int) -> None:
        del self._published[self._names.pop(page)]
        del self._tenants[page]


def pages_for(num_tokens: int) -> int:
    """Pages that hold num_tokens."""
    return -(-num_tokens // PAGE_TOKENS)
