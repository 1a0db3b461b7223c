"""What clients saw of a run, and whether it is as promised.

A history is a list of events: a request was sent, a token came, the answer ended. The checker finds every
breach of the promise: no gap, no duplicate, one end, usage that equals the tokens, and the text of the
fault-free run token by token. Pure functions; knows nothing of HTTP or faults.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, zip_longest
from typing import Literal

Kind = Literal["sent", "token", "end"]
Rule = Literal["gap", "duplicate", "end", "usage", "text", "failed"]

SERVED = frozenset({"length", "stop"})  # ends as they should be
LEAST_BEFORE = 8  # requests
CUT = "cut"  # the connection ended without an end


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamEvent:
    """One event of one request. at_s: monotonic.

    token: sequence is its number among the request's tokens, from 0 on. end: finish says why, num_tokens is
    what the usage told.
    """

    kind: Kind
    request: str
    at_s: float
    sequence: int | None = None
    token_id: int | None = None
    finish: str | None = None
    num_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Breach:
    """One rule that one request broke."""

    request: str
    rule: Rule
    detail: str


def check(history: Iterable[StreamEvent], expected: Mapping[str, Sequence[int]]) -> list[Breach]:
    """Every breach of the promise. expected: by request, the tokens of the fault-free run."""
    breaches: list[Breach] = []
    for request, events in by_request(history).items():
        found = [*_order(events), *_end(events), *_usage(events), *_text(events, expected[request])]
        breaches += [Breach(request=request, rule=rule, detail=detail) for rule, detail in found]
    return breaches


def by_request(history: Iterable[StreamEvent]) -> dict[str, list[StreamEvent]]:
    """The events of each request, in their order."""
    requests: defaultdict[str, list[StreamEvent]] = defaultdict(list)
    for event in history:
        requests[event.request].append(event)
    return dict(requests)


def tokens_of(events: Iterable[StreamEvent]) -> list[int]:
    return [event.token_id for event in events if event.kind == "token" and event.token_id is not None]


def differing(got: Sequence[int], expected: Sequence[int], *, is_whole: bool) -> int:
    """In how many places they differ; what is missing at the end counts only of an answer that is whole."""
    length = len(expected) if is_whole else min(len(got), len(expected))
    return sum(a != b for a, b in zip_longest(got, expected[:length]))


def longest_gap_s(history: Iterable[StreamEvent], since_s: float = float("-inf")) -> float:
    """The longest time for which a request under way saw nothing, of those times that ended after since_s.

    From being sent to the first token counts, too.
    """
    gaps = [
        late.at_s - early.at_s
        for events in by_request(history).values()
        for early, late in pairwise(events)
        if late.at_s >= since_s
    ]
    return max(gaps, default=0.0)


def slowdown(history: Iterable[StreamEvent], since_s: float) -> float | None:
    """The longest request of those that ended after since_s, by the p99 of those that ended before.

    None if fewer than LEAST_BEFORE did, or none has since. All that are compared should be alike.
    """
    before_s: list[float] = []
    after_s: list[float] = []
    for first, *_, end in by_request(history).values():
        (after_s if end.at_s >= since_s else before_s).append(end.at_s - first.at_s)
    if len(before_s) < LEAST_BEFORE or not after_s:
        return None
    p99_s = sorted(before_s)[math.ceil(0.99 * len(before_s)) - 1]
    return max(after_s) / p99_s


def to_lines(history: Iterable[StreamEvent]) -> Iterable[str]:
    """One JSON object per event; what is None is left out."""
    for event in history:
        yield json.dumps({name: value for name, value in asdict(event).items() if value is not None})


def from_lines(lines: Iterable[str]) -> list[StreamEvent]:
    """The inverse of to_lines."""
    return [StreamEvent(**json.loads(line)) for line in lines]


def _order(events: Sequence[StreamEvent]) -> Iterable[tuple[Rule, str]]:
    wanted = 0
    for event in events:
        if event.kind != "token":
            continue
        number = event.sequence
        if number is None or number > wanted:
            yield "gap", f"token {number} came when {wanted} was due"
        elif number < wanted:
            yield "duplicate", f"token {number} came again"
        wanted = max(wanted, (number or 0) + 1)


def _end(events: Sequence[StreamEvent]) -> Iterable[tuple[Rule, str]]:
    ends = [event for event in events if event.kind == "end"]
    if len(ends) != 1:
        yield "end", f"{len(ends)} ends"
    elif events[-1].kind != "end":
        yield "end", f"a {events[-1].kind} after the end"
    for end in ends:
        if end.finish not in SERVED:
            yield "failed", str(end.finish)


def _usage(events: Sequence[StreamEvent]) -> Iterable[tuple[Rule, str]]:
    count = len(tokens_of(events))
    for event in events:
        if event.kind == "end" and event.finish in SERVED and event.num_tokens != count:
            yield "usage", f"{event.num_tokens} told, {count} came"


def _text(events: Sequence[StreamEvent], expected: Sequence[int]) -> Iterable[tuple[Rule, str]]:
    is_whole = any(event.kind == "end" and event.finish in SERVED for event in events)
    count = differing(tokens_of(events), expected, is_whole=is_whole)
    if count:
        yield "text", f"{count} of {len(expected)} tokens differ"
