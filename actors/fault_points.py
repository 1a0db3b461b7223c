"""Points in a step where a process can be made to end, by name.

For faults that a signal from outside would rarely hit: between two parcels of one dispatch, or when a token
is drawn and nobody knows of it. While none is armed the loops run the very same code and objects as if this
file did not exist. Knows nothing of who is hit, or why.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Arguments = tuple[Any, ...]


def _always(_: Arguments, __: object) -> bool:
    return True


def _to_the_first(arguments: Arguments, _: object) -> bool:
    """Parcels of a dispatch go out in the order of the view: rows for others are still here."""
    return bool(arguments[0].endswith("-0"))


def _with_rows(_: Arguments, events: Any) -> bool:
    from router.transport import (
        Returned,
    )  # torch is where rows are, not in a controller

    return any(isinstance(event, Returned) for event in events)


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultPoint:
    """Around a call of `method` of a part of a server.

    is_after: when it has returned. counts: whether a call, by its arguments and what it returned (None
    before), is one.
    """

    part: str
    method: str
    is_after: bool
    counts: Callable[[Arguments, Any], bool] = _always


POINTS: Mapping[str, FaultPoint] = {
    # of an expert actor
    "rows-received": FaultPoint(part="held", method="forward", is_after=False),
    "rows-computed": FaultPoint(part="held", method="forward", is_after=True),
    "answer-sent": FaultPoint(part="listener", method="send", is_after=True),
    "expert-taken": FaultPoint(part="held", method="fill", is_after=True),
    # of an attention actor
    "rows-half-sent": FaultPoint(part="transport", method="post", is_after=True, counts=_to_the_first),
    "answer-came": FaultPoint(part="transport", method="poll", is_after=True, counts=_with_rows),
    "token-drawn": FaultPoint(part="listener", method="send", is_after=False),
    "token-sent": FaultPoint(part="listener", method="send", is_after=True),
    # of the controller
    "view-half-told": FaultPoint(part="fleet", method="send_view", is_after=True),
}


def arm(parts: Mapping[str, object], name: str, passes: int) -> None:
    """End this process, as SIGKILL does, when it passes a point for the `passes`-th time from now on.

    parts: of the server, by name. Safe from any thread. Raises ValueError for a point that it has not.
    """
    point = POINTS.get(name)
    if point is None or point.part not in parts:
        known = ", ".join(known for known, other in POINTS.items() if other.part in parts)
        raise ValueError(f"fault point is {name!r}: not known here; known: {known}")
    end_at(parts[point.part], point, passes)


def poison(parts: Mapping[str, object], seed: int) -> None:
    """End this process, from now on, when it is to compute a sequence of this seed."""

    def is_fatal(arguments: Arguments, _: object) -> bool:
        return any(work.sequence.sampling.seed == seed for work in arguments[0])

    end_at(parts["step"], FaultPoint(part="step", method="take", is_after=False, counts=is_fatal), 1)


def end_at(part: object, point: FaultPoint, passes: int, end: Callable[[], None] | None = None) -> None:
    """The method of this one object, with an end in it."""
    call, left, counting = getattr(part, point.method), passes, threading.Lock()

    def passed(arguments: Arguments, returned: object) -> None:
        nonlocal left
        if not point.counts(arguments, returned):
            return
        with counting:
            left -= 1
            is_it = left == 0
        if is_it:
            (end or _end)()

    def ending(*arguments: Any, **named: Any) -> Any:
        if not point.is_after:
            passed(arguments, None)
        returned = call(*arguments, **named)
        if point.is_after:
            passed(arguments, returned)
        return returned

    setattr(part, point.method, ending)


def _end() -> None:
    """At once, and nothing is flushed or closed by us: the kernel does."""
    os.kill(os.getpid(), signal.SIGKILL)
