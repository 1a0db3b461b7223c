"""Signs of life beside the work.

A process that computes for long, or waits for others, says every BEAT_S that it lives; one that owes
something and says nothing for SILENCE_S hangs, though its kernel keeps the connection. Knows nothing of
sockets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

BEAT_S = 0.25
SILENCE_S = 1.0
LONGEST_STEP_S = BEAT_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """I live; nothing else to say."""

    KIND: ClassVar[str] = "beat"


@dataclass(slots=True)
class Silence:
    """For how long a peer that should speak has said nothing.

    Time spent listening counts, not time passed, and in small steps: whoever was suspended or computed learns
    nothing about its peers by that.
    """

    quiet_s: float = 0.0

    def heard(self) -> None:
        self.quiet_s = 0.0

    def listened(self, seconds: float) -> None:
        self.quiet_s += min(seconds, LONGEST_STEP_S)


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Calls `beat` every BEAT_S from a thread of its own, until the block ends."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(BEAT_S):
            beat()

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
