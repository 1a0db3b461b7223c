"""Where the time of a step goes: one step in many is timed.

To time them all would cost all of them. Knows nothing of what is timed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from actors.metrics import Sample
from actors.trace import COMPUTE, INDEXER, Recorder

EVERY = 100  # steps


class Profile:
    """Since birth; the first step is timed, and then every EVERYth."""

    def __init__(self) -> None:
        self._step = 0
        self.num_timed = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def next(self) -> Recorder | None:
        """A step begins: what is to time it, if it is one of those."""
        self._step += 1
        return Recorder(1) if self._step % EVERY == 1 else None

    def add(self, recorder: Recorder) -> None:
        """What was timed of a step; the indexer's time is taken out of the attention that it is part of."""
        self.num_timed += 1
        for span in recorder.spans:
            if span.lane == COMPUTE:
                self.seconds[span.name] += span.seconds
            if span.name == INDEXER:
                self.seconds["attention"] -= span.seconds

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        yield Sample("shoal_timed_steps_total", self.num_timed)
        for part, seconds in list(self.seconds.items()):
            yield Sample("shoal_timed_seconds_total", max(0.0, seconds), (part,))
