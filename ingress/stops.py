"""Finds stop strings in text that comes in pieces.

However the text is cut, the same characters come out. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Holds back what may begin a stop string; the one that ends first wins, the longer on a tie."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._matchers = [_Matcher(stop) for stop in stops]
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was found: then what follows it is dropped)."""
        shown_at = len(self._held)
        buffer = self._held + text
        for end in range(shown_at + 1, len(buffer) + 1):
            for matcher in self._matchers:
                matcher.feed(buffer[end - 1])
            found = [matcher.stop for matcher in self._matchers if matcher.is_complete]
            if found:
                self._held = ""
                self.found = max(found, key=len)
                return buffer[: end - len(self.found)], True
        held = max((matcher.matched for matcher in self._matchers), default=0)
        self._held = buffer[len(buffer) - held :]
        return buffer[: len(buffer) - held], False

    def flush(self) -> str:
        """What was held back, where no more text will come; the finder is then as new."""
        held, self._held = self._held, ""
        for matcher in self._matchers:
            matcher.matched = 0
        return held


class _Matcher:
    """How much of `stop` the text ends in, in constant time per character (Knuth-Morris-Pratt)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = _borders(stop)

    @property
    def is_complete(self) -> bool:
        return self.matched == len(self.stop)

    def feed(self, character: str) -> None:
        self.matched = _advance(self.stop, self._fallback, self.matched, character)


def _borders(stop: str) -> list[int]:
    """For each length of prefix, the longest shorter prefix that it ends in."""
    borders = [0, 0]
    for character in stop[1:]:
        borders.append(_advance(stop, borders, borders[-1], character))
    return borders


def _advance(stop: str, borders: list[int], matched: int, character: str) -> int:
    while matched and stop[matched] != character:
        matched = borders[matched]
    return matched + 1 if stop[matched] == character else 0
