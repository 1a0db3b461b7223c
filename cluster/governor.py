"""What a fleet decides by itself.

Surveys the actors, and gives orders as an operator would, each with its reason. Knows nothing of how they
are carried out.
"""

from __future__ import annotations

from cluster.autoscale import Autoscaler, Seen
from cluster.fleet import Fleet
from cluster.member import ATTENTION, EXPERT
from cluster.orders import scale
from cluster.rebalance import Rebalancer
from cluster.survey import Survey, rise


class Governor:
    """One look at a time, beside the fleet's own."""

    def __init__(self, rebalancer: Rebalancer, autoscaler: Autoscaler) -> None:
        self.rebalancer = rebalancer
        self._autoscaler = autoscaler
        self._survey = Survey()
        self._busy_s: dict[int, float] = {}
        self._surveyed_s = 0.0

    def look(self, fleet: Fleet, now_s: float) -> None:
        """Take a survey when it is time; decide when one has come in."""
        if self._survey.look(fleet, now_s):
            self.rebalancer.note(fleet, self._survey, now_s)
            if fleet.is_settled and not fleet.renew_upto:
                self._autoscale(fleet, ATTENTION, self._attention(fleet), now_s)
                self._autoscale(fleet, EXPERT, self._experts(fleet, now_s), now_s)
        self.rebalancer.go_on(fleet)

    def _autoscale(self, fleet: Fleet, kind: str, seen: Seen, now_s: float) -> None:
        decision = self._autoscaler.decide(kind, seen, now_s)
        if decision is None:
            return
        try:
            scale(fleet, {kind: decision.count}, f"autoscaler: {decision.reason}")
        except ValueError as error:
            fleet.note(f"autoscaler: {decision.count} {kind} actors cannot be: {error}")
            return
        fleet.decisions["scale", "autoscaler"] += 1

    def _attention(self, fleet: Fleet) -> Seen:
        """How full: of sequences in the step or of pages, whichever is more."""
        stats = [
            self._survey.stats[m.incarnation] for m in fleet.attention if m.incarnation in self._survey.stats
        ]
        if not stats:
            return Seen(count=0, utilisation=0.0)
        used = 1 - sum(own["free_pages"] for own in stats) / sum(own["pages"] for own in stats)
        running = sum(own["running"] for own in stats) / (len(stats) * fleet.plan.attention.max_sequences)
        return Seen(
            count=len(fleet.attention),
            utilisation=max(used, running),
            wait_s=min(own["wait_s"] for own in stats),
            what="use of pages" if used > running else "use of the step's places",
        )

    def _experts(self, fleet: Fleet, now_s: float) -> Seen:
        """In what share of the time since the last survey they computed."""
        numbers = {m.incarnation for m in fleet.experts}
        busy_s = {n: stats["busy_s"] for n, stats in self._survey.stats.items() if n in numbers}
        before, passed_s = self._busy_s, now_s - self._surveyed_s
        self._busy_s, self._surveyed_s = busy_s, now_s
        known = {number: seconds for number, seconds in busy_s.items() if number in before}
        if not known or passed_s <= 0:
            return Seen(count=0, utilisation=0.0)
        share = rise(known, before) / (len(known) * passed_s)
        return Seen(count=len(fleet.experts), utilisation=share, what="share of time spent computing")
