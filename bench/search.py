"""The highest rate that is still served, found by trying.

Doubles while rates are served, halves while they are not, then divides what lies between. A plain rule.
Knows nothing of what is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt


@dataclass(slots=True)
class Search:
    """rate: to try next. served: the highest that was; refused: the lowest that was not."""

    rate: float
    served: float | None = None
    refused: float | None = None

    def note(self, *, is_served: bool) -> None:
        """What became of `rate`."""
        if is_served:
            self.served = max(self.rate, self.served or 0.0)
        else:
            self.refused = min(self.rate, self.refused or self.rate)
        if self.refused is None:
            self.rate *= 2
        elif self.served is None:
            self.rate /= 2
        else:
            self.rate = sqrt(self.served * self.refused)
