"""The TCP transport: one connection per expert actor.

Anywhere to anywhere; the reference for every fault test. A connection belongs to one life (incarnation) of an
actor, so that a restarted actor can never answer for its predecessor. Knows nothing of retries.
"""

from __future__ import annotations

import selectors
from dataclasses import dataclass

from router.connection import Connection, connect
from router.heartbeat import Beat
from router.parcels import Nack, Reply, pack_parcel, unpack_nack, unpack_reply
from router.transport import Alive, DispatchKey, Event, Lost, Parcel, PeerLost, Refused, Returned
from router.view import ActorId, ExpertActor, View
from router.wire import Frame, WireError, kinds

CONNECT_TIMEOUT_S = 2.0


@dataclass(eq=False, slots=True)
class _Link:
    actor: ExpertActor
    connection: Connection
    writing: bool = False


class TcpTransport:
    """Non-blocking; call from the step loop's thread only."""

    def __init__(self, *, token: bytes, actor: str, incarnation: int) -> None:
        self._token, self._actor, self._incarnation = token, actor, incarnation
        self._selector = selectors.DefaultSelector()
        self._links: dict[ActorId, _Link] = {}
        self._events: list[Event] = []

    def set_view(self, view: View) -> None:
        wanted = {actor.actor_id: actor for actor in view.actors}
        for actor_id, link in list(self._links.items()):
            if wanted.get(actor_id) != link.actor:
                self._forget(link)
        self._events = []
        for actor in view.actors:
            if actor.actor_id not in self._links:
                self._connect(actor)

    def post(self, actor: ActorId, parcel: Parcel) -> None:
        link = self._links.get(actor)
        if link is None:
            self._events.append(Lost(actor=actor, reason="not connected"))
            return
        header, payload = pack_parcel(parcel)
        try:
            link.connection.send(header, *payload)
            self._watch(link)
        except PeerLost as error:
            self._lose(link, str(error))

    def poll(self, timeout_s: float) -> list[Event]:
        if not self._events:
            for key, ready in self._selector.select(timeout_s):
                self._serve(key.data, ready)
        events, self._events = self._events, []
        return events

    def cancel(self, key: DispatchKey) -> None:
        """Nothing travels for this: the late answer is dropped by its key."""

    def close(self) -> None:
        for link in list(self._links.values()):
            self._forget(link)
        self._selector.close()

    def _connect(self, actor: ExpertActor) -> None:
        try:
            connection = connect(
                actor,
                token=self._token,
                actor=self._actor,
                incarnation=self._incarnation,
                accepted=kinds(Reply, Nack, Beat),
                timeout_s=CONNECT_TIMEOUT_S,
            )
        except (PeerLost, WireError) as error:
            self._events.append(Lost(actor=actor.actor_id, reason=str(error)))
            return
        link = _Link(actor, connection)
        self._links[actor.actor_id] = link
        self._selector.register(connection, selectors.EVENT_READ, link)

    def _serve(self, link: _Link, ready: int) -> None:
        num_known = len(self._events)
        try:
            if ready & selectors.EVENT_WRITE:
                link.connection.flush()
                self._watch(link)
            if ready & selectors.EVENT_READ:
                self._events.extend(self._decode(link, frame) for frame in link.connection.receive())
        except (PeerLost, WireError) as error:
            self._lose(link, str(error))
        if len(self._events) == num_known:  # a part of a frame came or went
            self._events.append(Alive(actor=link.actor.actor_id))

    def _decode(self, link: _Link, frame: Frame) -> Event:
        if isinstance(frame.message, Reply):
            key, rows = unpack_reply(frame, frame.message)
            return Returned(actor=link.actor.actor_id, key=key, rows_PD=rows)
        if isinstance(frame.message, Beat):
            return Alive(actor=link.actor.actor_id)
        assert isinstance(frame.message, Nack), "the parser accepts Reply, Nack and Beat only"
        return Refused(actor=link.actor.actor_id, key=unpack_nack(frame.message), reason=frame.message.reason)

    def _watch(self, link: _Link) -> None:
        if link.writing != link.connection.wants_write:
            link.writing = not link.writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.writing else 0)
            self._selector.modify(link.connection, events, link)

    def _lose(self, link: _Link, reason: str) -> None:
        self._forget(link)
        self._events.append(Lost(actor=link.actor.actor_id, reason=reason))

    def _forget(self, link: _Link) -> None:
        if self._links.get(link.actor.actor_id) is link:
            del self._links[link.actor.actor_id]
            self._selector.unregister(link.connection)
            link.connection.close()
