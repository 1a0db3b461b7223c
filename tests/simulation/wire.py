"""The fake wire: one attention actor's transport.

Behaves as router/tcp.py does: a link belongs to one life of an actor, and a newer view drops the links that
it does not name. Knows nothing of why messages are late.
"""

from __future__ import annotations

from collections.abc import Callable

from router.parcels import Dispatch, Nack, Reply, pack_parcel, unpack_nack, unpack_reply
from router.transport import DispatchKey, Event, Lost, Parcel, Refused, Returned
from router.view import ActorId, ExpertActor, View
from router.wire import Frame
from tests.simulation.experts import Life
from tests.simulation.world import World

POLL_S = 5e-4
CONNECT_S = 2.0  # until a connection is given up that nobody answers


class Wire:
    """put_view: takes what the controller sends. posted: every parcel, and the life that it was for."""

    def __init__(self, world: World, put_view: Callable[[View], None]) -> None:
        self._world = world
        self._links: dict[ActorId, Life] = {}
        self._events: list[Event] = []
        self.put_view = put_view
        self.actor = "attention"  # what an expert server calls its peer
        self.posted: list[tuple[ExpertActor, Parcel]] = []
        world.wires.append(self)

    def set_view(self, view: View) -> None:
        wanted = {actor.actor_id: actor for actor in view.actors}
        kept = self._links.items()
        self._links = {name: life for name, life in kept if wanted.get(name) == life.actor}
        self._events = []
        for actor in view.actors:
            if actor.actor_id not in self._links:
                self._connect(actor)

    def post(self, actor: ActorId, parcel: Parcel) -> None:
        life = self._links.get(actor)
        if life is None:
            self._events.append(Lost(actor=actor, reason="not connected"))
            return
        self.posted.append((life.actor, parcel))
        header, parts = pack_parcel(parcel)
        frame = Frame(header, memoryview(bytearray().join(parts)))
        self._world.send(life, lambda: self._deliver(life, frame))

    def poll(self, timeout_s: float) -> list[Event]:
        self._world.let_pass(POLL_S, lambda: False)  # so that no loop takes for ever without taking time
        self._world.let_pass(timeout_s, lambda: bool(self._events))
        events, self._events = self._events, []
        return events

    def cancel(self, key: DispatchKey) -> None:
        """Nothing travels for this."""

    def lose(self, life: Life) -> None:
        if self._links.get(life.actor.actor_id) is life:
            del self._links[life.actor.actor_id]
            self._events.append(Lost(actor=life.actor.actor_id, reason="reset"))

    def receive(self, life: Life, frame: Frame) -> None:
        """From an expert actor; dropped if it came by a connection that is gone."""
        name = life.actor.actor_id
        if self._links.get(name) is not life:
            return
        if isinstance(frame.message, Reply):
            key, rows_PD = unpack_reply(frame, frame.message)
            self._events.append(Returned(actor=name, key=key, rows_PD=rows_PD))
        else:
            assert isinstance(frame.message, Nack)
            reason = frame.message.reason
            self._events.append(Refused(actor=name, key=unpack_nack(frame.message), reason=reason))

    def _deliver(self, life: Life, frame: Frame) -> None:
        assert isinstance(frame.message, Dispatch)
        if life.is_alive and self._links.get(life.actor.actor_id) is life:
            life.deliver(self, frame)
            self._world.answer(life)

    def _connect(self, actor: ExpertActor) -> None:
        life = self._world.life_of(actor)
        if life is not None and life.is_held:
            self._world.let_pass(CONNECT_S, lambda: not life.is_held)
            life = self._world.life_of(actor)
        if life is None or life.is_held:
            self._events.append(Lost(actor=actor.actor_id, reason="cannot connect"))
        else:
            self._links[actor.actor_id] = life
