"""Ways to say a thing, spelled out from short patterns.

"[Show|List] {x}[ please|]." is four ways. A fifth of the ways is held out, and only such as are made of words
that the other ways have too: what is tested is recombination. Knows nothing of what is said.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import cache
from itertools import product
from random import Random

from demo.sample import Split

HELD_OUT_SHARE = 5  # one way in five
_CHOICE = re.compile(r"\[([^\]]*)\]")
_WORD = re.compile(r"[A-Za-z]+|\{\w+\}")


def expanded(pattern: str) -> list[str]:
    """Every way that `pattern` stands for."""
    parts = _CHOICE.split(pattern)  # every second one is a choice
    choices = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def words_of(way: str) -> tuple[str, ...]:
    """Its words and slots in lower case: two ways that differ in marks alone are one."""
    return tuple(word.lower() for word in _WORD.findall(way))


@cache
def ways(patterns: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """Those ways of all `patterns` that belong to the split."""
    train, held_out = _apart(patterns)
    return held_out if split == "held_out" else train


def say(rng: Random, patterns: tuple[str, ...], split: Split) -> str:
    """One way, its slots still open."""
    return rng.choice(ways(patterns, split))


@cache
def _apart(patterns: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ways trained on and those held out, which are chosen by their hashes.

    A way without words of its own, such as "{e}", is never held out.
    """
    unique = {words_of(way): way for pattern in patterns for way in expanded(pattern)}
    left = Counter(word for words in unique for word in set(words))
    wanted = len(unique) // HELD_OUT_SHARE
    kept: list[str] = []
    for words in sorted(unique, key=_digest):
        is_plain = any(not word.startswith("{") for word in words)
        if len(kept) < wanted and is_plain and all(left[word] > 1 for word in words):
            left.subtract(set(words))
            kept.append(unique[words])
    return tuple(way for way in unique.values() if way not in kept), tuple(kept)


def _digest(words: tuple[str, ...]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
