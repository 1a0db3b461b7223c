"""One data-plane actor over all its lives.

Begins a life, sees it load, listens to its pulse and ends it on any doubt: what hangs is killed, so that a
hang becomes a death, which everybody can tell. Knows nothing of views, nor of other members.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray

from actors.options import Loaded
from cluster.workers import Introduction, Pulse
from router.heartbeat import Silence

HANG_S = 1.5  # without a pulse, over the time that one takes: then it is ended
MAX_DEATHS = 5  # within DEATH_WINDOW_S: from then on the next life waits, or never begins if none has served
DEATH_WINDOW_S = 60.0
LONGEST_PAUSE_S = 30.0

Note = Callable[[str], None]


@dataclass(slots=True)
class Member:
    """experts: None for an attention actor. `pulse` is pending while it serves, `loading` while it loads."""

    actor_id: str
    experts: tuple[int, ...] | None
    incarnation: int = 0
    handle: Any = None
    loading: Any = None
    pulse: Any = None
    silence: Silence = field(default_factory=Silence)
    loaded: Loaded | None = None
    has_served: bool = False
    deaths_s: deque[float] = field(default_factory=deque)
    begin_s: float = 0.0  # the next life, not before
    gave_up: str | None = None

    @property
    def is_active(self) -> bool:
        return self.pulse is not None

    def is_due(self, now_s: float) -> bool:
        """Whether it is time for a next life."""
        return self.handle is None and self.gave_up is None and now_s >= self.begin_s

    def begin(self, incarnation: int, handle: Any) -> None:
        self.incarnation, self.handle = incarnation, handle

    def adopt(self, incarnation: int, handle: Any, introduction: Introduction) -> None:
        """A life that another controller began."""
        self.begin(incarnation, handle)
        self._serve(introduction.loaded)

    def check_load(self, now_s: float, note: Note) -> bool:
        """Whether it has just begun to serve."""
        if self.loading is None or not is_done(self.loading):
            return False
        loading, self.loading = self.loading, None
        try:
            loaded = ray.get(loading)
        except ray.exceptions.RayTaskError as error:
            self.gave_up = str(error.cause)  # the checkpoint cannot be read: another try would end the same
            note(f"{self.actor_id} cannot load: {error.cause}")
            return False
        except ray.exceptions.RayActorError:
            self.bury(now_s, note, "died while it loaded")
            return False
        self.handle.run.remote()
        self._serve(loaded)
        note(f"{self.actor_id} serves (incarnation {self.incarnation})")
        return True

    def check_pulse(self, now_s: float, listened_s: float, note: Note) -> Pulse | None:
        """Its pulse if one has come; buries it if it is dead, hangs or has ended."""
        if self.pulse is None:
            return None
        if not is_done(self.pulse):
            self.silence.listened(listened_s)
            if self.silence.quiet_s >= HANG_S:
                self.end(now_s, note, "hangs")
            return None
        self.silence.heard()
        try:
            pulse: Pulse = ray.get(self.pulse)
        except ray.exceptions.RayError:
            self.bury(now_s, note, "died")
            return None
        if not pulse.is_serving:
            self.end(now_s, note, "ended by itself")
            return None
        self.pulse = self.handle.pulse.remote()
        return pulse

    def end(self, now_s: float, note: Note, why: str) -> None:
        """Fence it: whatever state its process is in, nothing comes from it any more."""
        kill(self.handle, self.loaded)
        self.bury(now_s, note, why)

    def bury(self, now_s: float, note: Note, why: str) -> None:
        """This life is over; says when the next may begin."""
        note(f"{self.actor_id} {why} (incarnation {self.incarnation})")
        self.handle = self.loading = self.pulse = self.loaded = None
        self.silence.heard()
        self.deaths_s.append(now_s)
        while self.deaths_s[0] < now_s - DEATH_WINDOW_S:
            self.deaths_s.popleft()
        over = len(self.deaths_s) - MAX_DEATHS
        if over < 0:
            return
        if not self.has_served:
            self.gave_up = f"died {MAX_DEATHS} times within {DEATH_WINDOW_S:g} s and never served"
            note(f"{self.actor_id} left dead: {self.gave_up}")
            return
        self.begin_s = now_s + min(LONGEST_PAUSE_S, 2.0**over)

    def describe(self) -> dict[str, Any]:
        """What the command line shows; `progress` is still to be awaited."""
        is_loading = self.handle is not None and not self.is_active and self.gave_up is None
        return {
            "actor_id": self.actor_id,
            "kind": "attention" if self.experts is None else "expert",
            "incarnation": self.incarnation,
            "active": self.is_active,
            "pid": self.loaded.pid if self.loaded else None,
            "experts": None if self.experts is None else len(self.experts),
            "bytes_read": self.loaded.bytes_read if self.loaded else None,
            "checksum": self.loaded.checksum if self.loaded else None,
            "progress": self.handle.progress.remote() if is_loading else None,
        }

    def _serve(self, loaded: Loaded) -> None:
        self.loaded, self.has_served = loaded, True
        self.silence.heard()
        self.pulse = self.handle.pulse.remote()


def kill(handle: Any, loaded: Loaded | None) -> None:
    """End a life. Ray asks the process first; one that is suspended does not hear that, but hears SIGKILL."""
    if loaded is not None:
        _kill_here(loaded.pid)
    ray.kill(handle)


def is_done(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


def _kill_here(pid: int) -> None:
    """If it is an actor of this machine."""
    try:
        if psutil.Process(pid).cmdline()[0].startswith("ray::"):
            os.kill(pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError, IndexError):
        return  # gone already
