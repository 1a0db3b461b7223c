"""What an attention actor hands over, and what is handed to it.

One desk for the three messages: HandOver from an ingress, Offer and Pages from actors that are to leave. An
engine whose pages cannot travel refuses all of them. Knows nothing of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from actors.counters import HandoverCounters
from actors.engine import Engine, OwnedEvents
from actors.handover import Handover, Heir, Sender
from actors.intake import Intake
from actors.messages import HandOver
from actors.metrics import Sample
from actors.page_frames import Offer, Pages, Taken, Wanted
from actors.samples import handover_samples
from router.listener import Peer


class HandoverDesk:
    """The step loop's. announce: called by threads when one of them is done."""

    def __init__(self, engine: Engine, sender: Sender, announce: Callable[[], None]) -> None:
        self.counters = HandoverCounters()
        self._page_bytes = 0
        self._out: Handover | None = None
        self._in: Intake | None = None
        if (lending := engine.lending) is not None:
            self._page_bytes = lending.page_bytes
            self._out = Handover(engine, lending, sender, announce, self.counters)
            self._in = lending.intake(sender.maker, self.counters)

    def order(self, owner: Peer, message: HandOver) -> None:
        """All that the owner has or will have here goes to these heirs."""
        heirs = [
            Heir(actor_id=actor_id, incarnation=incarnation, host=host, port=port)
            for actor_id, incarnation, host, port in message.heirs
        ]
        if self._out is not None:
            self._out.order(owner, heirs)

    def come(
        self, peer: Peer, message: Offer | Pages, payload: memoryview, now_s: float
    ) -> Wanted | Taken | None:
        """Of an actor that is to leave; the answer, if there is one."""
        if self._in is None:
            return Wanted(num_fit=0, places=())
        if isinstance(message, Offer):
            return self._in.offered(peer, message, now_s)
        return self._in.came(peer, message, payload, now_s)

    def forget(self, peer: Peer) -> None:
        """It is gone, whoever it was."""
        if self._out is not None:
            self._out.forget(peer)
        if self._in is not None:
            self._in.forget(peer)

    def expire(self, now_s: float) -> None:
        """Wait no longer for pages that were offered long ago."""
        if self._in is not None:
            self._in.expire(now_s)

    def go_on(self, now_s: float) -> OwnedEvents:
        """Tell of those that have moved, begin with the next."""
        return {} if self._out is None else self._out.go_on(now_s)

    def is_under_way(self, now_s: float) -> bool:
        """Whether some are still to move, and it does not take too long; from any thread."""
        return self._out is not None and self._out.is_under_way(now_s)

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        yield from handover_samples(self.counters, self._page_bytes)
