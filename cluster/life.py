"""The life of one actor process, from spawn to end.

A question after its `pulse` is always pending: it fails within milliseconds of a death, and no answer in time
is a hang. What hangs is killed, so that it becomes a death, which everybody can tell. Knows nothing of what
the process serves.
"""

from __future__ import annotations

from cluster.processes import Answer, AnswerLost, Process, Pulse
from router.heartbeat import Silence

LATE_S = 1.0  # twice the time that a pulse takes
HANG_S = 1.5
BUSY_S = 60.0  # the same while it starts or loads: to import torch stops every thread for seconds


class Life:
    """One process. number: told to its peers as its incarnation; no two lives of a cluster share one.

    waits: for a node that has room; until it is there, a silence is no hang, however long.
    """

    def __init__(self, number: int, process: Process, *, waits: bool = False) -> None:
        self.number = number
        self.pid: int | None = None  # once it is known
        self.epoch = 0  # of the view that it computes with, as far as it has said
        self._process = process
        self.pulse = process.ask("pulse")
        self._busy: Answer | None = self.pulse  # until this is done, a silence is no hang: it starts
        self._silence = Silence()
        self._waits = waits

    def ask(self, question: str, *arguments: object) -> Answer:
        return self._process.ask(question, *arguments)

    def do(self, work: str, *arguments: object) -> Answer:
        """Ask for something that may keep the process from its pulse."""
        self._busy = self.ask(work, *arguments)
        return self._busy

    @property
    def is_late(self) -> bool:
        return not self.is_busy() and self._silence.quiet_s >= LATE_S

    @property
    def silent_s(self) -> float:
        """Since its last sign of life: an end can have gone unnoticed for no longer."""
        return self._silence.quiet_s

    def check(self, listened_s: float, hang_s: float) -> Pulse | str | None:
        """Its pulse if one has come; why it is over, if it is. hang_s: a longer silence is a hang."""
        is_done = self.pulse.is_done()
        if not is_done and self._waits:
            return None
        patience_s = BUSY_S if self.is_busy() else hang_s
        self._silence.listened(listened_s)
        if not is_done:
            return "hangs" if self._silence.quiet_s >= patience_s else None
        try:
            pulse: Pulse = self.pulse.get()
        except AnswerLost:
            return "died"
        self._silence.heard()
        if pulse.has_ended:
            return "ended by itself"
        self._waits = False
        self.epoch = max(self.epoch, pulse.epoch)
        self.pulse = self.ask("pulse")
        return pulse

    def is_busy(self) -> bool:
        """Whether it starts, warms up or loads."""
        if self._busy is not None and self._busy.is_done():
            self._busy = None
            self._silence.heard()
        return self._busy is not None

    def end(self) -> None:
        """Whatever state its process is in, nothing comes from it any more."""
        self._process.end(self.pid)


def hang_s(num_late: int) -> float:
    """How long a silence is a hang. Where many are late at once, the machine is slow: be slow to kill."""
    return HANG_S * max(1, num_late)
