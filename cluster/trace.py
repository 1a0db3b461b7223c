"""Spans of many actors as one timeline that Perfetto and Chrome open.

A process for each actor, in it a line for its step loop, one for what it computes and one for rows that are
away. Knows nothing of who recorded them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actors.trace import COMMUNICATION, COMPUTE, LOOP, Span

LANES = (LOOP, COMPUTE, COMMUNICATION)
MICROSECONDS = 1e6


def timeline(spans: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """Chrome's JSON trace format; spans: by actor id. Time begins with the first."""
    first_s = min((span.start_s for own in spans.values() for span in own), default=0.0)
    events: list[dict[str, Any]] = []
    for process, (actor, own) in enumerate(sorted(spans.items()), 1):
        events += _names(process, actor, own)
        events += [_event(process, span, first_s) for span in own]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _names(process: int, actor: str, spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": actor}}
    used = {span.lane for span in spans}
    for number, lane in enumerate(LANES):
        if lane in used:
            yield {"ph": "M", "name": "thread_name", "pid": process, "tid": number, "args": {"name": lane}}


def _event(process: int, span: Span, first_s: float) -> dict[str, Any]:
    told: dict[str, Any] = {"step": span.step}
    if span.layer is not None:
        told["layer"] = span.layer
    if span.experts:
        told["experts"] = list(span.experts)
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.lane,
        "pid": process,
        "tid": LANES.index(span.lane),
        "ts": round((span.start_s - first_s) * MICROSECONDS, 1),
        "dur": round(span.seconds * MICROSECONDS, 1),
        "args": told,
    }
