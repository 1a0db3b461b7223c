"""The life of one actor process, from spawn to end.

A call of its `pulse` is always pending: Ray fails it within milliseconds of a death, and no answer in time is
a hang. What hangs is killed, so that it becomes a death, which everybody can tell. Knows nothing of what the
process serves.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import ray

from cluster.workers import Pulse
from router.heartbeat import Silence

LATE_S = 1.0  # twice the time that a pulse takes
HANG_S = 1.5
BUSY_S = 60.0  # the same while it starts or loads: to import torch stops every thread for seconds


class Life:
    """One process. number: told to its peers as its incarnation; no two lives of a cluster share one.

    waits: for a node that has room; until it is there, a silence is no hang, however long.
    """

    def __init__(self, number: int, handle: Any, *, waits: bool = False) -> None:
        self.number, self.handle = number, handle
        self.pid: int | None = None  # once it is known
        self.pulse = handle.pulse.remote()
        self._busy = self.pulse  # until this is done, a silence is no hang: the process starts
        self._silence = Silence()
        self._waits = waits

    def do(self, work: Any) -> Any:
        """Note a call that may keep the process from its pulse; returns it."""
        self._busy = work
        return work

    @property
    def is_late(self) -> bool:
        return not self.is_busy() and self._silence.quiet_s >= LATE_S

    def check(self, listened_s: float, hang_s: float) -> Pulse | str | None:
        """Its pulse if one has come; why it is over, if it is. hang_s: a longer silence is a hang."""
        if not is_done(self.pulse):
            if self._waits:
                return None
            self._silence.listened(listened_s)
            patience_s = BUSY_S if self.is_busy() else hang_s
            return "hangs" if self._silence.quiet_s >= patience_s else None
        self._silence.heard()
        try:
            pulse: Pulse = ray.get(self.pulse)
        except ray.exceptions.RayError:
            return "died"
        if pulse.has_ended:
            return "ended by itself"
        self._waits = False
        self.pulse = self.handle.pulse.remote()
        return pulse

    def is_busy(self) -> bool:
        """Whether it starts, warms up or loads."""
        if self._busy is not None and is_done(self._busy):
            self._busy = None
            self._silence.heard()
        return self._busy is not None

    def end(self) -> None:
        """Whatever state its process is in, nothing comes from it any more.

        Ray asks the process; one that is suspended does not hear that, but hears SIGKILL.
        """
        if self.pid is not None:
            kill_here(self.pid)
        ray.kill(self.handle)


def hang_s(num_late: int) -> float:
    """How long a silence is a hang. Where many are late at once, the machine is slow: be slow to kill."""
    return HANG_S * max(1, num_late)


def is_done(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


def kill_here(pid: int) -> bool:
    """SIGKILL, if it is an actor of this machine; whether it was."""
    try:
        if not psutil.Process(pid).cmdline()[0].startswith("ray::"):
            return False
        os.kill(pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError, IndexError):
        return False  # gone already
    return True
