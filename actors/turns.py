"""Whose order is served next: each line in turn.

Orders stand in lines, one per tenant, oldest first; whoever has many delays nobody but itself. An order
can be withdrawn by its key. Knows nothing of what the orders are for, of threads and of time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Every key is in one line at most."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, OrderedDict[Hashable, T]] = OrderedDict()  # the next one first
        self._line_of: dict[Hashable, Hashable] = {}

    def __len__(self) -> int:
        return len(self._line_of)

    def num_in(self, line: Hashable) -> int:
        return len(self._lines.get(line, ()))

    def put(self, line: Hashable, key: Hashable, order: T) -> None:
        assert key not in self._line_of, f"{key} has an order already"
        self._line_of[key] = line
        self._lines.setdefault(line, OrderedDict())[key] = order

    def next(self) -> T | None:
        """Take the first order of the line whose turn it is."""
        if not self._lines:
            return None
        line, orders = self._lines.popitem(last=False)
        key, order = orders.popitem(last=False)
        del self._line_of[key]
        if orders:
            self._lines[line] = orders  # behind the others
        return order

    def discard(self, key: Hashable) -> None:
        """Withdraw an order; nothing happens if it is not here."""
        line = self._line_of.pop(key, None)
        orders = self._lines.get(line)
        if orders is not None and orders.pop(key, None) is not None and not orders:
            del self._lines[line]
