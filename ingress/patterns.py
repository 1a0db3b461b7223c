"""Whether a pattern of a tokenizer can take for ever.

A checkpoint brings its pre-tokenizer's regular expressions, and clients bring the texts: a repetition of what
already repeats (`(a+)+`) lets a short text cost exponential time. Such patterns are refused, with more than
that rather than less. Knows nothing of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

# An escape, a class, a bounded or an unbounded repetition, a bracket, anything else.
PIECE = re.compile(
    r"(?P<atom>\\[pP]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\])"
    r"|(?P<endless>[*+]|\{\d+,\})|(?P<open>\()|(?P<close>\))|(?P<other>.)",
    re.DOTALL,
)


def patterns_of(node: Any) -> Iterator[str]:
    """Every regular expression in a part of a tokenizer.json."""
    if isinstance(node, dict):
        if isinstance(node.get("Regex"), str):
            yield node["Regex"]
        for value in node.values():
            yield from patterns_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from patterns_of(value)


def repeats_repetition(pattern: str) -> bool:
    """Whether something in a group repeats without end, and so does the group."""
    repeats = [False]  # by open group: whether anything in it does
    closed = False  # what was just closed does
    for piece in PIECE.finditer(pattern):
        kind = piece.lastgroup
        if kind == "endless":
            if closed:
                return True
            repeats[-1] = True
        closed = False
        if kind == "open":
            repeats.append(False)
        elif kind == "close" and len(repeats) > 1:
            closed = repeats.pop()
            repeats[-1] |= closed
    return False
