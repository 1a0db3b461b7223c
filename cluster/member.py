"""One seat of the data plane over all the lives that take it.

Sees a life load and serve, notes how it ended and says when the next may begin. Knows nothing of views, nor
of other members.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.options import Loaded
from cluster.life import Life, is_done
from cluster.places import pid_here
from cluster.workers import Pulse

MAX_DEATHS = 5  # within DEATH_WINDOW_S: from then on the next life waits, or never begins if none has served
DEATH_WINDOW_S = 60.0
LONGEST_PAUSE_S = 30.0

Note = Callable[[str], None]


@dataclass(slots=True)
class Member:
    """experts: None for an attention actor. `life` without `loaded` is still loading."""

    actor_id: str
    experts: tuple[int, ...] | None
    life: Life | None = None
    loading: Any = None
    loaded: Loaded | None = None
    has_served: bool = False
    deaths_s: deque[float] = field(default_factory=deque)
    begin_s: float = 0.0  # the next life, not before
    gave_up: str | None = None
    num_deaths: int = 0
    gone_since_s: float | None = None
    recovery_s: float | None = None  # of the last death: until the next life served

    @property
    def is_active(self) -> bool:
        return self.life is not None and self.loaded is not None

    @property
    def kind(self) -> str:
        return "attention" if self.experts is None else "expert"

    @property
    def incarnation(self) -> int:
        return self.life.number if self.life else 0

    def is_due(self, now_s: float) -> bool:
        """Whether it is time for a next life."""
        return self.life is None and self.gave_up is None and now_s >= self.begin_s

    def adopt(self, life: Life, loaded: Loaded) -> None:
        """A life that an earlier controller began, and that serves."""
        life.pid = pid_here(loaded.host, loaded.pid)
        self.life, self.loaded, self.has_served = life, loaded, True

    def check_load(self, now_s: float, note: Note) -> bool:
        """Whether it has just begun to serve."""
        if self.life is None or self.loading is None or not is_done(self.loading):
            return False
        loading, self.loading = self.loading, None
        try:
            loaded: Loaded = ray.get(loading)
        except ray.exceptions.RayTaskError as error:
            if self.has_served:  # it could be read before: another life may again
                self.end(now_s, note, f"cannot load: {error.cause}")
                return False
            self.gave_up = str(error.cause)  # the checkpoint cannot be read: another try would end the same
            note(f"{self.actor_id} cannot load: {error.cause}")
            self.life.end()
            self.life = None
            return False
        except ray.exceptions.RayActorError:
            self.bury(now_s, note, "died while it loaded")
            return False
        self.loaded, self.has_served = loaded, True
        if self.gone_since_s is not None:
            self.recovery_s, self.gone_since_s = now_s - self.gone_since_s, None
        self.life.pid = pid_here(loaded.host, loaded.pid)
        self.life.handle.run.remote()
        note(f"{self.actor_id} serves (incarnation {self.life.number})")
        return True

    def check_life(self, now_s: float, listened_s: float, hang_s: float, note: Note) -> Pulse | None:
        """Its pulse if one has come; ends and buries it if there is reason to."""
        if self.life is None or self.gave_up is not None:
            return None
        found = self.life.check(listened_s, hang_s)
        if isinstance(found, str):
            self.end(now_s, note, found)
            return None
        return found

    def end(self, now_s: float, note: Note, why: str) -> None:
        """Fence it: its peers must never hear from it again."""
        assert self.life is not None, f"{self.actor_id} has no life to end"
        self.life.end()
        self.bury(now_s, note, why)

    def bury(self, now_s: float, note: Note, why: str) -> None:
        """This life is over; says when the next may begin."""
        note(f"{self.actor_id} {why} (incarnation {self.incarnation})")
        self.life = self.loading = self.loaded = None
        self.num_deaths += 1
        self.gone_since_s = now_s if self.gone_since_s is None else self.gone_since_s
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
        is_loading = self.life is not None and not self.is_active and self.gave_up is None
        return {
            "actor_id": self.actor_id,
            "kind": self.kind,
            "incarnation": self.incarnation,
            "active": self.is_active,
            "pid": self.loaded.pid if self.loaded else None,
            "host": self.loaded.host if self.loaded else None,
            "metrics_port": self.loaded.metrics_port if self.loaded else None,
            "gave_up": self.gave_up,
            "deaths": self.num_deaths,
            "recovery_s": self.recovery_s,
            "experts": None if self.experts is None else len(self.experts),
            "bytes_read": self.loaded.bytes_read if self.loaded else None,
            "checksum": self.loaded.checksum if self.loaded else None,
            "progress": self.life.handle.progress.remote() if is_loading and self.life else None,
        }
