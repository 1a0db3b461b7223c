"""Published pages that nobody reads, by the tenant that made them.

Whose place is needed gives the oldest page of the tenant with the most: one that floods the cache evicts its
own, and what others find stays. Knows nothing of what makes a page idle (actors/pages.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator


class IdlePages:
    """Each page of one tenant; in each tenant's order of coming."""

    def __init__(self) -> None:
        self._of: dict[str, OrderedDict[int, None]] = {}
        self._tenants: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._tenants)

    def __iter__(self) -> Iterator[int]:
        return iter(self._tenants)

    def __contains__(self, page: int) -> bool:
        return page in self._tenants

    def add(self, page: int, tenant: str) -> None:
        self._tenants[page] = tenant
        self._of.setdefault(tenant, OrderedDict())[page] = None

    def discard(self, page: int) -> None:
        """Not idle any more, if it was."""
        tenant = self._tenants.pop(page, None)
        if tenant is not None:
            del self._of[tenant][page]
            if not self._of[tenant]:
                del self._of[tenant]

    def pop(self) -> int:
        """The next to go; there must be one. Of tenants with as many, the one whose pages came first."""
        most = max(self._of.values(), key=len)
        page = next(iter(most))
        self.discard(page)
        return page
