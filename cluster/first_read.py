"""What each part of the checkpoint was when an actor first read it.

Whoever reads it later must find the same: two copies of an expert that differ would make the text depend on
who answers. Knows nothing of files, nor of what is done about a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from actors.options import Loaded
from router.view import Pair


class FirstRead:
    """checksum: of what every attention actor reads; empty until one has."""

    def __init__(self) -> None:
        self.checksum = ""
        self._digests: dict[Pair, int] = {}

    def digests_of(self, pairs: Iterable[Pair]) -> dict[Pair, int]:
        """As far as they are known."""
        return {pair: self._digests[pair] for pair in pairs if pair in self._digests}

    def learn(self, digests: Mapping[Pair, int]) -> Pair | None:
        """Of experts that have been read; one that differs from what was read of it first, if any does."""
        for pair, digest in digests.items():
            if self._digests.setdefault(pair, digest) != digest:
                return pair
        return None

    def compare(self, loaded: Loaded, *, is_expert: bool) -> str | None:
        """Learn what a life has read; why it may not serve beside the others, if it may not."""
        if is_expert:
            differs = self.learn(loaded.digests)
            return differs and f"read expert {differs[1]} of layer {differs[0]} otherwise than others did"
        self.checksum = self.checksum or loaded.checksum
        return None if loaded.checksum == self.checksum else "read other weights than others did"
