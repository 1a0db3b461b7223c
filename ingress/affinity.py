"""Which attention actor has seen the beginning of a prompt.

Of every prompt placed, its first 64, 128, 256, ... tokens are remembered as hashes, with the actor; the
oldest are forgotten. It is a hint: to lose it costs time, never an answer. Knows nothing of connections.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

FIRST_TOKENS = 64  # a page; shorter beginnings are not cached
WORTH_SHARE = 0.25  # of a prompt: for less, nobody is sent to a busier actor
LOAD_FACTOR, LOAD_SLACK = 1.25, 1.0  # an actor is overloaded above factor * mean + slack sequences
MAX_MARKS = 65_536
MARK_BYTES = 16


@dataclass(frozen=True, slots=True)
class Mark:
    """The first num_tokens tokens of a prompt, as a hash."""

    digest: bytes
    num_tokens: int


class Affinity:
    """Chooses for each prompt; bounded by max_marks."""

    def __init__(self, max_marks: int = MAX_MARKS) -> None:
        self._max_marks = max_marks
        self._actors: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._actors)

    def choose(self, marks: Sequence[Mark], num_tokens: int, loads: Mapping[str, int]) -> str:
        """The actor given most of the prompt before, unless it is overloaded; else the least busy.

        marks: of the prompt, which has num_tokens. loads: open sequences of each actor that can be chosen.
        """
        most = LOAD_FACTOR * (sum(loads.values()) + 1) / len(loads) + LOAD_SLACK
        for mark in reversed(marks):
            holder = self._actors.get(mark.digest, "")
            is_worth_it = mark.num_tokens >= WORTH_SHARE * num_tokens
            if is_worth_it and loads.get(holder, most) < most:
                return holder
        return min(loads, key=lambda actor_id: (loads[actor_id], actor_id))

    def note(self, marks: Sequence[Mark], actor_id: str) -> None:
        """The actor has these prefixes now."""
        for mark in marks:
            self._actors[mark.digest] = actor_id
            self._actors.move_to_end(mark.digest)
        while len(self._actors) > self._max_marks:
            self._actors.popitem(last=False)


def marks_of(token_ids: Sequence[int], salt: str) -> list[Mark]:
    """Shortest first; prompts of different salts have none in common."""
    hasher = blake2b(blake2b(salt.encode()).digest(), digest_size=MARK_BYTES)
    marks, start, end = [], 0, FIRST_TOKENS
    while end <= len(token_ids):
        hasher.update(array("q", token_ids[start:end]).tobytes())
        marks.append(Mark(hasher.copy().digest(), end))
        start, end = end, 2 * end
    return marks
