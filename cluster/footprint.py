"""What a cluster holds at one moment, and what its attention actors have done since birth.

Before a fault and after it: what is left behind, what was handed over and what computed again. Knows nothing
of faults or of load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.deeds import descriptors, processes

if TYPE_CHECKING:
    from cluster.running import Cluster

# So many times as many as before, or so many more, are no leak: connections between those that live vary.
DESCRIPTORS, MORE_DESCRIPTORS = 1.1, 8

Totals = Mapping[str, float]  # by actor, since its birth


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """handed_pages: that attention actors have taken over. again_tokens: computed though they were before."""

    processes: Counter[str]
    descriptors: Counter[str]
    free_pages: int
    sequences: int
    handed_pages: Totals
    again_tokens: Totals

    @staticmethod
    def of(cluster: Cluster) -> Footprint:
        stats = cluster.stats()
        return Footprint(
            processes=processes(),
            descriptors=descriptors(),
            free_pages=int(sum(own.get("free_pages", 0) for own in stats.values())),
            sequences=int(sum(own.get("running", 0) + own.get("waiting", 0) for own in stats.values())),
            handed_pages={name: own.get("handed_pages_in", 0) for name, own in stats.items()},
            again_tokens={name: own.get("again_tokens", 0) for name, own in stats.items()},
        )

    def beyond(self, before: Footprint) -> list[str]:
        """What there is more than before, in words."""
        words = [f"{count} more {title}" for title, count in (self.processes - before.processes).items()]
        words += [
            f"{count - before.descriptors[title]} more open files in {title}"
            for title, count in self.descriptors.items()
            if count
            > max(before.descriptors[title] * DESCRIPTORS, before.descriptors[title] + MORE_DESCRIPTORS)
        ]
        if self.free_pages < before.free_pages:
            words.append(f"{before.free_pages - self.free_pages} fewer free pages")
        if self.sequences:
            words.append(f"{self.sequences} sequences")
        return words


def grown(after: Totals, before: Totals) -> int:
    """By how much; a total that is less than before is of a next life, and began at nothing.

    What a life did that has come and gone in between is not seen.
    """
    since = {name: total - before.get(name, 0) for name, total in after.items()}
    return int(sum(after[name] if more < 0 else more for name, more in since.items()))
