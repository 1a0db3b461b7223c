"""A life that has given up its seat, until nobody needs it.

An expert actor ends when nobody computes by a view that names it. An attention actor is drained first:
ingresses give it nothing new and have it hand over what it has; what is left when that is done, or does not
get on, they resume elsewhere from their journals. It ends when all of them know that it is out. Knows nothing
of who sits there now.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.life import Life
from cluster.processes import Pulse
from cluster.term import Term

QUIET_S = 2.0  # once all know: within that time a hand-over begins, or will not
LONGEST_DRAIN_S = 300.0  # as long as streams of an ingress replica that is to end are waited for
LONGEST_S = 60.0  # whoever has not heard by then hears it from a connection that ends


@dataclass(slots=True)
class Farewell:
    """since_s: it is out of its seat since then. gone_epoch: of the first view without it, once there is one.

    told_s: every ingress knows since then that it is to be drained. drained_s: it is since then.
    """

    actor_id: str
    term: Term
    is_expert: bool
    since_s: float
    gone_epoch: int | None = None
    told_s: float | None = None
    drained_s: float | None = None

    @property
    def life(self) -> Life:
        return self.term.life

    @property
    def is_draining(self) -> bool:
        return not self.is_expert and self.term.is_active and self.drained_s is None

    def note_epoch(self, epoch: int) -> None:
        if self.gone_epoch is None:
            self.gone_epoch = epoch

    def is_over(
        self, now_s: float, found: Pulse | str | None, *, epoch_in_use: int, heard_by_all_s: float
    ) -> bool:
        """Whether its life may end, or has. found: as Life.check says."""
        if isinstance(found, str):
            return True
        if self.is_expert:
            is_known = self.gone_epoch is not None and epoch_in_use >= self.gone_epoch
            return is_known or now_s >= self.since_s + LONGEST_S
        if self.is_draining:
            self._drain(now_s, found, heard_by_all_s)
            return False
        out_s = self.since_s if self.drained_s is None else self.drained_s
        return heard_by_all_s > out_s or now_s >= out_s + LONGEST_S

    def _drain(self, now_s: float, pulse: Pulse | None, heard_by_all_s: float) -> None:
        """Only a pulse that comes after all have been told says what is left."""
        if self.told_s is None:
            self.told_s = now_s if heard_by_all_s > self.since_s else None
        elif pulse is not None:
            is_idle = not pulse.is_handing_over and now_s >= self.told_s + QUIET_S
            self.drained_s = now_s if is_idle or not pulse.num_sequences else None
        if now_s >= self.since_s + LONGEST_DRAIN_S:
            self.drained_s = now_s
