"""A network cable that can lose and delay what it carries, each way by itself.

A process between two network devices: it does what the kernel's netem does, where a kernel has none. Knows
nothing of what is in a frame.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import selectors
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.ray.netns import open_tap

MAX_FRAME_BYTES = 65_536
FRAMES_PER_TURN = 64  # then the other way gets its own
MAX_DELAYED = 20_000  # frames; what comes beyond is lost, as in a full queue


@dataclass(frozen=True, kw_only=True)
class Weather:
    """One way. loss: share of the frames."""

    loss: float = 0.0
    delay_s: float = 0.0


FAIR, CUT = Weather(), Weather(loss=1.0)


class Cable:
    """From `device` of one network namespace to a device of another, until closed."""

    def __init__(self, inner: tuple[str, str], outer: tuple[str, str]) -> None:
        ends = [open_tap(*inner), open_tap(*outer)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray.cable", *map(str, ends)],
            stdin=subprocess.PIPE,
            pass_fds=ends,
            cwd=Path(__file__).parents[2],
        )
        for end in ends:
            os.close(end)

    def set(self, *, out: Weather = FAIR, into: Weather = FAIR) -> None:
        """From now on. out: of what the inner end sends."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([asdict(out), asdict(into)]).encode() + b"\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class _Way:
    """From one device to the other."""

    def __init__(self, source: int, target: int, numbers: itertools.count[int]) -> None:
        self.source, self._target, self._numbers = source, target, numbers
        self.weather = FAIR
        self._delayed: list[tuple[float, int, bytes]] = []

    def take(self) -> None:
        for _ in range(FRAMES_PER_TURN):
            try:
                frame = os.read(self.source, MAX_FRAME_BYTES)
            except BlockingIOError:
                return
            except OSError:  # the device is not up
                return
            if random.random() < self.weather.loss:
                continue
            if not self.weather.delay_s and not self._delayed:
                self._put(frame)
            elif len(self._delayed) < MAX_DELAYED:
                due_s = time.monotonic() + self.weather.delay_s
                heapq.heappush(self._delayed, (due_s, next(self._numbers), frame))

    def deliver(self, now_s: float) -> None:
        while self._delayed and self._delayed[0][0] <= now_s:
            self._put(heapq.heappop(self._delayed)[2])

    @property
    def due_s(self) -> float:
        return self._delayed[0][0] if self._delayed else float("inf")

    def _put(self, frame: bytes) -> None:
        with suppress(OSError):  # a full queue, or a device that is down: lost, as on any network
            os.write(self._target, frame)


def carry(inner: int, outer: int) -> None:
    """Until the input ends."""
    numbers: itertools.count[int] = itertools.count()
    ways = (_Way(inner, outer, numbers), _Way(outer, inner, numbers))
    selector = selectors.DefaultSelector()
    for way in ways:
        selector.register(way.source, selectors.EVENT_READ, way)
    orders = sys.stdin.fileno()
    selector.register(orders, selectors.EVENT_READ)
    while True:
        due_s = min(way.due_s for way in ways)
        for key, _ in selector.select(None if due_s == float("inf") else max(0.0, due_s - time.monotonic())):
            if key.data is not None:
                key.data.take()
            elif lines := os.read(orders, MAX_FRAME_BYTES).splitlines():  # written whole, so read whole
                for way, weather in zip(ways, json.loads(lines[-1]), strict=True):
                    way.weather = Weather(**weather)
            else:
                return
        for way in ways:
            way.deliver(time.monotonic())


if __name__ == "__main__":
    carry(int(sys.argv[1]), int(sys.argv[2]))
