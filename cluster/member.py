"""One seat of the data plane, over all its terms.

Sees a life load and serve, notes how it ended and says when the next may begin. Knows nothing of views, nor
of other members.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.first_read import FirstRead
from cluster.processes import Answer, ProcessDied, Pulse, WorkFailed
from cluster.term import Term
from router.view import Pair

MAX_DEATHS = 5  # within DEATH_WINDOW_S: from then on the next life waits, or never begins if none has served
DEATH_WINDOW_S = 60.0
LONGEST_PAUSE_S = 30.0
HEIR_PAUSE_S = 5.0

EXPERT, ATTENTION = "expert", "attention"  # kinds; an actor's id begins with its own

CAUSES = (
    *("died", "hangs", "ended by itself", "answered rubbish"),
    *("died while it loaded", "cannot load"),
)  # of the end of a life; what follows a colon says more

Note = Callable[[str], None]


@dataclass(slots=True)
class Member:
    """wanted: the experts that it should hold; None for an attention actor. heir: of the term that serves.

    is_new: all serve without it until it has loaded for the first time.
    """

    actor_id: str
    wanted: frozenset[Pair] | None
    term: Term | None = None
    heir: Term | None = None
    has_served: bool = False
    is_leaving: bool = False
    is_new: bool = False
    deaths_s: deque[float] = field(default_factory=deque)
    begin_s: float = 0.0  # the next life, not before
    gave_up: str | None = None
    num_deaths: int = 0
    faults: Counter[str] = field(default_factory=Counter)  # by cause
    gone_since_s: float | None = None
    recovery_s: float | None = None  # of the last death: until the next life served
    detection_s: float | None = None  # of it: since its last sign of life

    @property
    def is_expert(self) -> bool:
        return self.wanted is not None

    @property
    def serving(self) -> Term | None:
        return self.term if self.term is not None and self.term.is_active else None

    @property
    def is_active(self) -> bool:
        return self.serving is not None

    @property
    def kind(self) -> str:
        return EXPERT if self.is_expert else ATTENTION

    @property
    def incarnation(self) -> int:
        return self.term.life.number if self.term else 0

    @property
    def terms(self) -> list[Term]:
        return [term for term in (self.term, self.heir) if term is not None]

    def is_due(self, now_s: float) -> bool:
        """Whether it is time for a next life."""
        return self.term is None and self.gave_up is None and not self.is_leaving and now_s >= self.begin_s

    def may_go(self, *, has_successor: bool) -> bool:
        """Whether it is to leave, and can: an expert actor in no view, an attention actor if others serve."""
        if not self.is_leaving or self.serving is None:
            return self.is_leaving
        return not self.serving.shown if self.is_expert else has_successor

    def check_load(self, now_s: float, note: Note, first_read: FirstRead) -> bool:
        """Whether it has just begun to serve."""
        term = self.term
        if term is None or term.loading is None or not term.loading.is_done():
            return False
        try:
            self._take_up(term, term.loading, first_read)
        except ProcessDied:
            self.end(now_s, note, "died while it loaded")
            return False
        except WorkFailed as error:
            if self.has_served:  # it could be read before: another life may again
                self.end(now_s, note, f"cannot load: {error}")
                return False
            self.gave_up = str(error)  # the checkpoint cannot be read: another try would end the same
            note(f"{self.actor_id} cannot load: {error}")
            term.life.end()
            self.term = None
            return False
        self.has_served, self.is_new = True, False
        if self.gone_since_s is not None:
            self.recovery_s, self.gone_since_s = now_s - self.gone_since_s, None
        note(f"{self.actor_id} serves (incarnation {self.incarnation}){_with(term)}")
        return True

    def _take_up(self, term: Term, loading: Answer, first_read: FirstRead) -> None:
        """Let it serve; raises AnswerLost if it cannot, or may not."""
        loaded = loading.get()
        differs = first_read.compare(loaded, is_expert=self.is_expert)
        if differs:
            raise WorkFailed(differs)
        term.take_up(loaded)

    def check_life(self, now_s: float, listened_s: float, hang_s: float, note: Note) -> Pulse | None:
        """Its pulse if one has come; ends and buries it if there is reason to."""
        if self.term is None:
            return None
        found = self.term.life.check(listened_s, hang_s)
        if isinstance(found, str):
            self.end(now_s, note, found)
            return None
        return found

    def check_heir(
        self, now_s: float, listened_s: float, hang_s: float, note: Note, first_read: FirstRead
    ) -> Term | None:
        """The term that is over because its heir has just begun to serve."""
        heir = self.heir
        if heir is None:
            return None
        found = heir.life.check(listened_s, hang_s)
        if heir.loading is not None and heir.loading.is_done():
            try:
                self._take_up(heir, heir.loading, first_read)
            except (ProcessDied, WorkFailed) as error:
                found = f"cannot load: {error}"
        if not isinstance(found, str) and self._has_gained_since(heir):
            found = "lacks experts that have come since"
        if isinstance(found, str):
            note(f"{self.actor_id} keeps its life, the next one {found}")
            heir.life.end()
            self.heir, self.begin_s = None, now_s + HEIR_PAUSE_S
            return None
        if not heir.is_active or (self.serving is not None and not self.serving.shown <= heir.held):
            return None  # until another holds what the view still shows here
        before, self.term, self.heir, self.has_served = self.term, heir, None, True
        note(f"{self.actor_id} serves in its next life (incarnation {self.incarnation}){_with(heir)}")
        return before

    def _has_gained_since(self, heir: Term) -> bool:
        """Whether it serves experts that the heir was not told of when its load began: nobody else may."""
        has_begun = heir.loading is not None or heir.is_active
        if self.serving is None or self.wanted is None or not has_begun:
            return False
        return not self.serving.held & self.wanted <= heir.held

    def end(self, now_s: float, note: Note, why: str) -> None:
        """Fence it: its peers must never hear from it again. Says when the next life may begin.

        An heir, if there is one, is the next life.
        """
        assert self.term is not None, f"{self.actor_id} has no life to end"
        self.detection_s = self.term.life.silent_s
        self.term.life.end()
        note(f"{self.actor_id} {why} (incarnation {self.incarnation})")
        self.term, self.heir = self.heir, None
        self.num_deaths += 1
        self.faults[why.partition(":")[0]] += 1
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
        loaded = self.term.loaded if self.term else None
        is_loading = self.term is not None and not self.is_active
        return {
            "actor_id": self.actor_id,
            "kind": self.kind,
            "incarnation": self.incarnation,
            "active": self.is_active,
            "leaving": self.is_leaving,
            "pid": loaded.pid if loaded else None,
            "host": loaded.host if loaded else None,
            "metrics_port": loaded.metrics_port if loaded else None,
            "gave_up": self.gave_up,
            "deaths": self.num_deaths,
            "faults": dict(self.faults),
            "recovery_s": self.recovery_s,
            "detection_s": self.detection_s,
            "experts": self._experts_per_layer(),
            "bytes_read": loaded.bytes_read if loaded else None,
            "checksum": loaded.checksum if loaded else None,
            "progress": self.term.life.ask("progress").reference if is_loading and self.term else None,
        }

    def _experts_per_layer(self) -> int | None:
        """Most of a layer's experts that it should hold."""
        if self.wanted is None:
            return None
        layers = [layer for layer, _ in self.wanted]
        return max((layers.count(layer) for layer in set(layers)), default=0)


def _with(term: Term) -> str:
    """Of an expert actor: who had what it holds."""
    return f" with {term.loaded.origins}" if term.loaded and term.loaded.origins else ""
