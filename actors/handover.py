"""How an attention actor that is to leave hands its sequences over.

One sequence after another, a few at a time: its final pages go to an heir on a thread, while it goes on being
computed; then it ends here, and whoever asked resumes it there, where all but the last tokens are found. What
fails stays as it was: the sequence goes on here. Knows nothing of how an order comes.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

from actors.counters import HandoverCounters
from actors.engine import Engine, OwnedEvents
from actors.intake import LONGEST_S
from actors.lending import Lending
from actors.messages import TokenEvent
from actors.page_frames import Offer, Taken, Wanted, pages_frame
from actors.prefix import Chain
from router.connection import Connection, connect
from router.heartbeat import Beat
from router.transport import PeerLost
from router.wire import BadFrame, Message, WireError, kinds

logger = logging.getLogger(__name__)

AT_A_TIME = 4
FRAME_BYTES = 1 << 20  # of pages; each thread holds as much, and a socket's buffer

M = TypeVar("M", bound=Message)


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

    def order(self, owner: Hashable, heirs: Sequence[Heir]) -> None:
        """From the next step on, for whatever the owner has or will have here."""
        self._heirs[owner] = list(heirs)
        self._lending.wake_drafter(owner)

    def forget(self, owner: Hashable) -> None:
        self._heirs.pop(owner, None)

    def go_on(self) -> OwnedEvents:
        """Tell of those that have moved, begin with the next."""
        events: OwnedEvents = defaultdict(list)
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            event = self._end(outcome)
            if event is not None:
                events[outcome.transfer.owner].append(event)
        for owner, heirs in self._heirs.items():
            self._begin(owner, heirs)
        return events

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
                num_pages = self._send(transfer.chain, transfer.heir, start_s + LONGEST_S)
            problem = None
        except (PeerLost, WireError, TimeoutError) as error:
            problem = str(error)
        finally:
            seconds = time.monotonic() - start_s
            self._outcomes.put(
                _Outcome(transfer=transfer, num_pages=num_pages, seconds=seconds, problem=problem)
            )
            self._announce()

    def _send(self, chain: Chain, heir: Heir, deadline_s: float) -> int:
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
            _say(connection, Offer(maker=sender.maker, keys=chain.keys), b"", deadline_s)
            wanted = _await(connection, Wanted, deadline_s)
            if not wanted.num_fit or not {*wanted.places} <= {*range(len(chain.keys))}:
                raise BadFrame("it cannot take them")
            per_frame = max(1, FRAME_BYTES // self._lending.page_bytes)
            for at in range(0, len(wanted.places), per_frame):
                places = wanted.places[at : at + per_frame]
                payload = self._lending.read([chain.pages[place] for place in places])
                _say(connection, pages_frame(places, payload), payload, deadline_s)
            if wanted.places and (problem := _await(connection, Taken, deadline_s).problem) is not None:
                raise BadFrame(f"it has not taken them: {problem}")
            return len(wanted.places)
        finally:
            connection.close()


def _say(connection: Connection, message: Message, payload: bytes, deadline_s: float) -> None:
    """Returns when the kernel has all of it: no more than one frame is held here."""
    connection.send(message, payload)
    while connection.wants_write:
        _wait(connection, select.POLLOUT, deadline_s)
        connection.flush()


def _await(connection: Connection, kind: type[M], deadline_s: float) -> M:
    while True:
        for frame in connection.receive():
            if isinstance(frame.message, kind):
                return frame.message
            if not isinstance(frame.message, Beat):
                raise BadFrame(f"{frame.message.KIND} came for {kind.KIND}")
        _wait(connection, select.POLLIN, deadline_s)


def _wait(connection: Connection, event: int, deadline_s: float) -> None:
    """Until it is so; raises TimeoutError."""
    poll = select.poll()
    poll.register(connection, event)
    left_s = deadline_s - time.monotonic()
    if left_s <= 0 or not poll.poll(1000 * left_s):
        raise TimeoutError(f"not within {LONGEST_S:g} s")
