"""Names and numbers for samples, those of training apart from the held-out ones.

A word belongs to one split by its hash, so no list can leak. Made-up words are of three makes: a model that
has copied nothing but syllables stumbles over "fridge". Knows nothing of any task.
"""

from __future__ import annotations

import hashlib
from functools import cache
from random import Random
from string import ascii_lowercase

from demo.lexicon import ADJECTIVES, NOUNS, RESERVED, VERBS
from demo.sample import Split

HELD_OUT_SHARE = 5  # one word in five is never trained on
BLENDED_SHARE = 0.3  # of the made-up words: the head of one English word and the tail of another
SPELLED_SHARE = 0.1  # of them: any letters

_ONSETS = (
    *"bcdfghjklmnprstvwz",
    "br",
    "ch",
    "cl",
    "dr",
    "fl",
    "gr",
    "kr",
    "pl",
    "sh",
    "sl",
    "st",
    "th",
    "tr",
)
_VOWELS = (*"aeiou", "ai", "ea", "io", "oo")
_CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "x", "ck", "nd")
_ENGLISH = f"{NOUNS} {VERBS} {ADJECTIVES}"
_RESERVED = frozenset(RESERVED.split())


def split_of(word: str) -> Split:
    """The split that `word` belongs to, for ever."""
    digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
    return "held_out" if int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0 else "train"


def word(rng: Random, split: Split, *, syllables: tuple[int, int] = (2, 3)) -> str:
    """A made-up lower-case word of that split, such as "drenio", "fritance" or "qhwa"."""
    while True:
        share = rng.random()
        if share < SPELLED_SHARE:
            made = "".join(rng.choices(ascii_lowercase, k=rng.randint(3, 7)))
        elif share < SPELLED_SHARE + BLENDED_SHARE:
            made = _blended(rng, split)
        else:
            parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.randint(*syllables))]
            made = "".join(parts) + rng.choice(_CODAS)
        if split_of(made) == split and made not in _RESERVED:
            return made


def english(rng: Random, words: str, split: Split) -> str:
    """One of a list of demo/lexicon.py."""
    return rng.choice(of_split(words, split))


@cache
def of_split(words: str, split: Split) -> tuple[str, ...]:
    """Those of a list of demo/lexicon.py that belong to the split, each once."""
    return tuple(word for word in dict.fromkeys(words.split()) if split_of(word) == split)


def _blended(rng: Random, split: Split) -> str:
    head, tail = english(rng, _ENGLISH, split), english(rng, _ENGLISH, split)
    return head[: rng.randint(2, max(2, len(head) - 1))] + tail[-rng.randint(2, max(2, len(tail) - 1)) :]


def name(rng: Random, split: Split) -> str:
    """As `word`, written as a name: "Drenio"."""
    return word(rng, split).capitalize()


def distinct_words(rng: Random, split: Split, count: int) -> list[str]:
    """`count` different words."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[word(rng, split)] = None
    return list(found)


def pick(rng: Random, options: tuple[str, ...], split: Split, *, held_out: int) -> str:
    """One of `options`.

    The last `held_out` of them are kept for the held-out split, the rest for training.
    """
    return rng.choice(options[-held_out:] if split == "held_out" else options[:-held_out])


def number(rng: Random, split: Split, low: int, high: int) -> int:
    """A number in [low, high] of that split; the range must hold some of both."""
    while True:
        drawn = rng.randint(low, high)
        if split_of(str(drawn)) == split:
            return drawn
