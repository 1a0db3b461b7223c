"""How an attention actor that is to leave hands its sequences over.

One sequence after another, a few at a time: its final pages go to an heir on a thread, while it goes on being
computed; then it ends here, and whoever asked resumes it there, where all but the last tokens are found. What
fails stays as it was: the sequence goes on here. Says for how long that is worth waiting. Knows nothing of
how an order comes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from actors.counters import HandoverCounters
from actors.engine import Engine, OwnedEvents
from actors.intake import LONGEST_S
from actors.lending import Lending
from actors.messages import TokenEvent
from actors.page_frames import Offer, Taken, Wanted, pages_frame
from actors.prefix import Chain
from router.connection import connect
from router.dialogue import hear, say
from router.heartbeat import Beat
from router.transport import PeerLost
from router.wire import BadFrame, WireError, kinds

logger = logging.getLogger(__name__)

AT_A_TIME = 4
GRACE_S = 2.0  # beside the time that the pages should take
SLACK = 2.0  # times as long as that
SLOW_RATE = 64 << 20  # bytes a second of one transfer: nobody is thought to be quicker
FRAME_BYTES = 1 << 20  # of pages; each thread holds as much, and a socket's buffer


@dataclass(frozen=True, kw_only=True, slots=True)
class Heir:
    """One life of an attention actor."""

    actor_id: str
    incarnation: int
    host: str
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sender:
    """Who hands over, as its heirs must know it. maker: as in Offer."""

    token: bytes
    actor_id: str
    incarnation: int
    maker: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Transfer:
    owner: Hashable
    request_id: str
    chain: Chain
    heir: Heir


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """problem: why the heir does not have them; None if it has."""

    transfer: _Transfer
    num_pages: int
    seconds: float
    problem: str | None


class Handover:
    """The step loop's, but for its threads. announce: called by them when one is done."""

    def __init__(
        self,
        engine: Engine,
        lending: Lending,
        sender: Sender,
        announce: Callable[[], None],
        counters: HandoverCounters,
    ) -> None:
        self._engine, self._lending = engine, lending
        self._sender, self._announce, self._counters = sender, announce, counters
        self._heirs: dict[Hashable, list[Heir]] = {}  # by owner, without those that have failed
        self._under_way: set[tuple[Hashable, str]] = set()
        self._outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        self._num_begun = 0
        self._begun_s: float | None = None
        self._until_s = 0.0

    def order(self, owner: Hashable, heirs: Sequence[Heir]) -> None:
        """From the next step on, for whatever the owner has or will have here."""
        self._heirs[owner] = list(heirs)
        self._lending.wake_drafter(owner)

    def forget(self, owner: Hashable) -> None:
        self._heirs.pop(owner, None)

    def is_under_way(self, now_s: float) -> bool:
        """Whether some are still to move, and it does not take too long; from any thread."""
        return now_s < self._until_s

    def go_on(self, now_s: float) -> OwnedEvents:
        """Tell of those that have moved, begin with the next."""
        events: OwnedEvents = defaultdict(list)
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            event = self._end(outcome)
            if event is not None:
                events[outcome.transfer.owner].append(event)
        for owner, heirs in self._heirs.items():
            self._begin(owner, heirs)
        self._until_s = self._deadline_s(now_s)
        return events

    def _deadline_s(self, now_s: float) -> float:
        """Until when those that are left may take: longer than their pages should, at the measured pace."""
        owners = [owner for owner, heirs in self._heirs.items() if heirs and self._lending.of(owner)]
        if not owners:
            return 0.0
        counters = self._counters
        self._begun_s = now_s if self._begun_s is None else self._begun_s
        num_pages = counters.pages_out + sum(self._lending.num_pages(owner) for owner in owners)
        page_s = max(self._lending.page_bytes / SLOW_RATE, counters.seconds / max(1, counters.pages_out))
        return self._begun_s + GRACE_S + SLACK * num_pages * page_s / AT_A_TIME

    def _begin(self, owner: Hashable, heirs: Sequence[Heir]) -> None:
        for request_id in self._lending.of(owner) if heirs else ():
            if len(self._under_way) >= AT_A_TIME:
                return
            if (owner, request_id) in self._under_way:
                continue
            chain, heir = self._lending.lend(owner, request_id), heirs[self._num_begun % len(heirs)]
            transfer = _Transfer(owner=owner, request_id=request_id, chain=chain, heir=heir)
            self._num_begun += 1
            self._under_way.add((owner, request_id))
            threading.Thread(target=self._run, args=(transfer,), name="hand-over", daemon=True).start()

    def _end(self, outcome: _Outcome) -> TokenEvent | None:
        transfer, counters = outcome.transfer, self._counters
        self._under_way.remove((transfer.owner, transfer.request_id))
        self._lending.take_back(transfer.chain)
        counters.pages_out += outcome.num_pages
        counters.seconds += outcome.seconds
        if outcome.problem is None:
            event = self._engine.depart(transfer.owner, transfer.request_id, transfer.heir.actor_id)
            counters.sequences += event is not None  # else it has ended meanwhile
            return event
        logger.warning(
            "%s is not handed to %s: %s", transfer.request_id, transfer.heir.actor_id, outcome.problem
        )
        counters.failed += 1
        heirs = self._heirs.get(transfer.owner, [])
        if transfer.heir in heirs:
            heirs.remove(transfer.heir)
        return None

    def _run(self, transfer: _Transfer) -> None:
        """On its own thread: what it reads of the cache has a reader more, so that nobody writes it."""
        start_s = time.monotonic()
        num_pages = 0
        problem: str | None = "a fault of ours"  # unless it is said otherwise
        try:
            if transfer.chain.keys:
                num_pages = self._send(transfer.chain, transfer.heir)
            problem = None
        except (PeerLost, WireError, TimeoutError) as error:
            problem = str(error)
        finally:
            seconds = time.monotonic() - start_s
            self._outcomes.put(
                _Outcome(transfer=transfer, num_pages=num_pages, seconds=seconds, problem=problem)
            )
            self._announce()

    def _send(self, chain: Chain, heir: Heir) -> int:
        """What the heir lacks of it; how many pages that were. Raises PeerLost, WireError or TimeoutError."""
        sender = self._sender
        connection = connect(
            heir,
            token=sender.token,
            actor=sender.actor_id,
            incarnation=sender.incarnation,
            accepted=kinds(Wanted, Taken, Beat),
        )
        try:
            say(connection, Offer(maker=sender.maker, keys=chain.keys), patience_s=LONGEST_S)
            wanted, _ = hear(connection, Wanted, patience_s=LONGEST_S)
            if not wanted.num_fit or not {*wanted.places} <= {*range(len(chain.keys))}:
                raise BadFrame("it cannot take them")
            per_frame = max(1, FRAME_BYTES // self._lending.page_bytes)
            for at in range(0, len(wanted.places), per_frame):
                places = wanted.places[at : at + per_frame]
                payload = self._lending.read([chain.pages[place] for place in places])
                say(connection, pages_frame(places, payload), payload, patience_s=LONGEST_S)
            if wanted.places:
                taken, _ = hear(connection, Taken, patience_s=LONGEST_S)
                if taken.problem is not None:
                    raise BadFrame(f"it has not taken them: {taken.problem}")
            return len(wanted.places)
        finally:
            connection.close()
