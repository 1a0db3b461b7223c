"""A life that has given up its seat, until everyone knows.

An expert actor ends when nobody computes by a view that names it; an attention actor when every ingress has
been told that it is gone, and has taken its sequences elsewhere. Knows nothing of who sits there now.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.life import Life

LONGEST_S = 60.0  # whoever has not heard by then hears it from a connection that ends


@dataclass(slots=True)
class Farewell:
    """since_s: it is out since then. gone_epoch: of the first view without it, once there is one."""

    actor_id: str
    life: Life
    is_expert: bool
    since_s: float
    gone_epoch: int | None = None

    def note_epoch(self, epoch: int) -> None:
        if self.gone_epoch is None:
            self.gone_epoch = epoch

    def is_over(
        self,
        now_s: float,
        listened_s: float,
        hang_s: float,
        *,
        epoch_in_use: int,
        heard_by_all_s: float,
    ) -> bool:
        """Whether its life may end, or has."""
        if isinstance(self.life.check(listened_s, hang_s), str) or now_s >= self.since_s + LONGEST_S:
            return True
        if self.is_expert:
            return self.gone_epoch is not None and epoch_in_use >= self.gone_epoch
        return heard_by_all_s > self.since_s
