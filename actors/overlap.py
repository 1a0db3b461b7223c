"""Whether two micro-batches pay: measured while serving.

Two halves hide the experts of one behind the attention of the other, and read most weights twice. Which is
quicker depends on network, model and machine, so steps of about as many rows take turns now and then, with
one batch and with two, and the quicker way is kept until the next trial. It decides speed, never text. Knows
nothing of what a step computes.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

from actors.options import MicroBatches
from kernels.rows import ROW_MULTIPLE

logger = logging.getLogger(__name__)

LEAST_ROWS = 2 * ROW_MULTIPLE  # with fewer a half is padding
PAIRS = 8  # of a trial: a step with one batch beside a step with two
LEAST_GAIN = 1.05  # times as quick, to change: what a noisy neighbour makes of nothing
SHORTEST_REST = 128  # steps to the next trial; twice as many after each that changes nothing,
LONGEST_REST = 8192


@dataclass(slots=True)
class _Size:
    """Steps of about as many rows. seconds: of the trial under way, by micro-batches."""

    chosen: int = 1
    resting: int = SHORTEST_REST // 4  # the first steps of a process are like no others
    rest: int = SHORTEST_REST
    seconds: dict[int, list[float]] = field(default_factory=lambda: {1: [], 2: []})

    @property
    def next(self) -> int:
        if self.resting:
            return self.chosen
        return 1 if len(self.seconds[1]) == len(self.seconds[2]) else 2

    def gain(self) -> float:
        """How many times as quick the other way was."""
        kept, tried = self.seconds[self.chosen], self.seconds[3 - self.chosen]
        return median(one / other for one, other in zip(kept, tried, strict=True))


@dataclass(slots=True)
class Overlap:
    """split_steps: those computed as two micro-batches. changes: how often a trial changed the choice."""

    micro_batches: MicroBatches
    split_steps: int = 0
    changes: int = 0
    _sizes: defaultdict[int, _Size] = field(default_factory=lambda: defaultdict(_Size))

    def choose(self, num_rows: int) -> int:
        """Micro-batches of the next step."""
        if num_rows < LEAST_ROWS:
            return 1
        if self.micro_batches != "auto":
            return self.micro_batches
        return self._sizes[num_rows.bit_length()].next

    def note(self, num_rows: int, micro_batches: int, seconds: float) -> None:
        """The step that was chosen for is computed."""
        self.split_steps += micro_batches == 2
        if self.micro_batches != "auto" or num_rows < LEAST_ROWS:
            return
        size = self._sizes[num_rows.bit_length()]
        if size.resting:
            size.resting -= 1
            return
        size.seconds[micro_batches].append(seconds)
        if len(size.seconds[2]) == PAIRS:
            self._decide(size, num_rows)

    def _decide(self, size: _Size, num_rows: int) -> None:
        gain = size.gain()
        if gain >= LEAST_GAIN:
            size.chosen, size.rest = 3 - size.chosen, SHORTEST_REST
            self.changes += 1
            logger.info(
                "steps of about %d rows: micro-batches %d -> %d, %.2f times as quick",
                num_rows,
                3 - size.chosen,
                size.chosen,
                gain,
            )
        else:
            size.rest = min(2 * size.rest, LONGEST_REST)
        size.resting = size.rest
        size.seconds = {1: [], 2: []}
