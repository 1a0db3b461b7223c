"""What an engine has done since birth, in numbers.

Written by the step loop, read by whoever asks for stats. Knows nothing of what is being computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.scheduler import Work


class Laps:
    """Where a loop's time goes: every moment belongs to the part that ends next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since_s = time.perf_counter()

    def lap(self, part: str) -> None:
        """What has passed since the last lap was `part`."""
        now_s = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now_s - self._since_s
        self._since_s = now_s

    def go_on(self) -> None:
        """What has passed since the last lap was another's."""
        self._since_s = time.perf_counter()


@dataclass(slots=True)
class EngineCounters:
    """drafted, accepted: by place, first draft of a step, second, ... laps: of the step loop."""

    laps: Laps = field(default_factory=Laps)
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    finished: int = 0
    refused: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def count_step(self, planned: Iterable[Work]) -> None:
        self.steps += 1
        for work in planned:
            if work.num_tokens == 1:
                self.decode_tokens += 1
            else:
                self.prefill_tokens += work.num_tokens

    def count_drafts(self, num_drafts: int, num_accepted: int) -> None:
        """The drafts of one sequence in a step."""
        for place in range(num_drafts):
            self.drafted[place] += 1
            self.accepted[place] += place < num_accepted
        self.decode_tokens += num_accepted

    def stats(self) -> dict[str, float]:
        return {
            "steps": self.steps,
            "prefill_tokens": self.prefill_tokens,
            "decode_tokens": self.decode_tokens,
            "finished": self.finished,
            "refused": self.refused,
            **{f"drafted_{place}": count for place, count in enumerate(self.drafted, 1)},
            **{f"accepted_{place}": count for place, count in enumerate(self.accepted, 1)},
        }


@dataclass(slots=True)
class HandoverCounters:
    """Of an actor that leaves, and of what others left to it.

    sequences: that have gone with their pages. pages_out: sent; what the heir had already is not counted.
    seconds: of all transfers, though some go side by side.
    """

    sequences: int = 0
    failed: int = 0
    pages_out: int = 0
    pages_in: int = 0
    seconds: float = 0.0
