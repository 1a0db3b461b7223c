"""The examples of docs/api.md.

What is asked, what the model says to it, what comes back. Knows nothing of servers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
URL, MODEL = "http://127.0.0.1:8000", "shoal-demo"
EXAMPLE = re.compile(
    r"(?:<!-- the model says: (?P<says>.*?) -->\n)?"
    r"```(?P<kind>sh|python)\n(?P<asked>.*?)```\n"
    r"```(?:json|text)\n(?P<shown>.*?)```\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Example:
    """kind: sh or python. says: with special tokens spelled out. shown: what comes back."""

    kind: str
    says: str
    asked: str
    shown: str


def examples(kind: str) -> list[Example]:
    found = [
        Example(m["kind"], m["says"] or "", m["asked"], m["shown"])
        for m in EXAMPLE.finditer(PAGE.read_text())
    ]
    blocks = re.findall(r"^```(?:sh|python)$", PAGE.read_text(), re.MULTILINE)
    assert len(found) == len(blocks), "each example is followed by what it shows"
    return [one for one in found if one.kind == kind]
