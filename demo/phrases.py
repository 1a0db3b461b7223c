"""Ways to say a thing, spelled out from short patterns.

"[Show|List] {x}[ please|]." is four ways. A fifth of the ways is held out, and only such as hold no two words
that the other ways never hold together: what is tested is recombination. Knows nothing of what is said.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import cache
from itertools import combinations, product
from random import Random

from demo.sample import Split

HELD_OUT_SHARE = 5  # one way in five
_CHOICE = re.compile(r"\[([^\]]*)\]")
_WORD = re.compile(r"[A-Za-z]+|\{\w+\}")
Words = tuple[str, ...]


def expanded(pattern: str) -> list[str]:
    """Every way that `pattern` stands for."""
    parts = _CHOICE.split(pattern)  # every second one is a choice
    choices = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def words_of(way: str) -> Words:
    """Its words and slots in lower case: two ways that differ in marks alone are one."""
    return tuple(word.lower() for word in _WORD.findall(way))


@cache
def ways(patterns: tuple[str, ...], split: Split) -> tuple[tuple[str, ...], ...]:
    """Of each pattern the ways that belong to the split; a pattern that has none is left out."""
    kept = _held_out(patterns)
    unique = {words_of(way): way for pattern in patterns for way in expanded(pattern)}
    groups: list[tuple[str, ...]] = []
    for pattern in patterns:
        spelled = (way for way in expanded(pattern) if unique[words_of(way)] == way)
        groups.append(tuple(way for way in spelled if (words_of(way) in kept) == (split == "held_out")))
    return tuple(group for group in groups if group)


def say(rng: Random, patterns: tuple[str, ...], split: Split) -> str:
    """One way, its slots still open; a pattern of few ways is drawn as often as one of many."""
    return rng.choice(rng.choice(ways(patterns, split)))


def _held_out(patterns: tuple[str, ...]) -> frozenset[Words]:
    """The words of the ways that are never trained on, chosen by their hashes.

    The plainest ways are always trained on: the first one of a pattern, and those of one word. Where no way
    can be spared by pairs, what is new is a pair.
    """
    unique = {words_of(way) for pattern in patterns for way in expanded(pattern)}
    plainest = {words_of(expanded(pattern)[0]) for pattern in patterns}
    spare = sorted((words for words in unique - plainest if len(words) > 1), key=_digest)
    most = len(unique) // HELD_OUT_SHARE
    return _spared(unique, spare, most, parts=2) or _spared(unique, spare, most, parts=1)


def _spared(unique: set[Words], spare: list[Words], most: int, *, parts: int) -> frozenset[Words]:
    """At most `most` of `spare`: combinations of so many words in them are left in the others of `unique`."""

    def combined(words: Words) -> list[Words]:
        return list(combinations(sorted(set(words)), parts))

    left = Counter(part for words in unique for part in combined(words))
    kept: set[Words] = set()
    for words in spare:
        if len(kept) < most and all(left[part] > 1 for part in combined(words)):
            left.subtract(combined(words))
            kept.add(words)
    return frozenset(kept)


def _digest(words: Words) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
