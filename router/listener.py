"""The server end of our sockets: accept, prove, hand over frames.

One thread, one selector. Strangers may send MAX_HANDSHAKE_BYTES and must prove the cluster token within
HANDSHAKE_TIMEOUT_S; a peer that sends anything but our frames is cut off and counted. Knows nothing of what
the messages ask for.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import time
from dataclasses import dataclass

from router.connection import Connection
from router.handshake import HANDSHAKE_TIMEOUT_S, MAX_HANDSHAKE_BYTES, Challenge, Hello, admit, challenge
from router.heartbeat import BEAT_S, Beat
from router.transport import PeerLost
from router.wire import Frame, Kinds, WireError, kinds

logger = logging.getLogger(__name__)

MAX_STRANGERS = 64


@dataclass(eq=False, slots=True)
class Peer:
    """One accepted connection. `actor` is empty until the peer has proved itself."""

    connection: Connection
    sent: Challenge
    since_s: float
    actor: str = ""
    role: str = ""
    writing: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame from a proven peer, or (frame None) the news that it is gone."""

    peer: Peer
    frame: Frame | None


@dataclass(slots=True)
class ListenerCounters:
    accepted: int = 0
    rejected: int = 0
    bad_frames: int = 0


@dataclass(slots=True)
class _Waker:
    reader: socket.socket
    writer: socket.socket


class Listener:
    """Bound on construction; `poll` from one thread, `wake` and `beat` from any."""

    def __init__(
        self, host: str, port: int, *, token: bytes, actor: str, incarnation: int, accepted: Kinds
    ) -> None:
        self._token, self._actor, self._incarnation, self._accepted = token, actor, incarnation, accepted
        self._server = socket.create_server((host, port), backlog=128)
        self._server.setblocking(False)
        self.host, self.port = self._server.getsockname()[:2]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._waker = _Waker(*socket.socketpair())
        self._waker.reader.setblocking(False)
        self._waker.writer.setblocking(False)
        self._selector.register(self._waker.reader, selectors.EVENT_READ)
        self._peers: set[Peer] = set()
        self._gone: list[Peer] = []
        self._is_waiting = False
        self.counters = ListenerCounters()

    def wake(self) -> None:
        """Make a waiting `poll` return; safe from any thread."""
        try:
            self._waker.writer.send(b"!")
        except OSError:
            return  # a wake is already pending, or the listener has closed

    def send(self, peer: Peer, message: object, *payload: bytes | memoryview) -> None:
        """Send to a proven peer; if it is gone, the next poll says so."""
        try:
            peer.connection.send(message, *payload)  # type: ignore[arg-type]
            self._watch(peer)
        except PeerLost:
            self._drop(peer)

    def beat(self) -> None:
        """Tell the peers that have not heard of us lately that we live.

        Not while `poll` waits: then whatever comes is answered at once, and beats that nobody reads would
        pile up.
        """
        if self._is_waiting:
            return
        now_s = time.monotonic()
        for peer in list(self._peers):
            if not peer.actor or now_s - peer.connection.sent_s < BEAT_S:
                continue
            try:
                if peer.connection.wants_write:
                    peer.connection.flush()
                else:
                    peer.connection.send(Beat())
            except PeerLost:
                continue  # the next poll says so

    def poll(self, timeout_s: float | None) -> list[Arrival]:
        """Frames and losses of proven peers.

        Waits up to timeout_s (None: for ever) if there is nothing yet.
        """
        arrivals: list[Arrival] = []
        patience_s = 0 if self._gone else self._patience_s(timeout_s)
        self._is_waiting = patience_s != 0
        ready = self._selector.select(patience_s)
        self._is_waiting = False
        for key, events in ready:
            if key.fileobj is self._server:
                self._accept()
            elif key.fileobj is self._waker.reader:
                os.read(self._waker.reader.fileno(), 4096)
            else:
                self._serve(key.data, events, arrivals)
        self._expire_strangers()
        while self._gone:
            peer = self._gone.pop()
            if peer.actor:
                arrivals.append(Arrival(peer, None))
        return arrivals

    def close(self) -> None:
        for peer in list(self._peers):
            peer.connection.close()
        self._selector.close()
        self._server.close()
        self._waker.reader.close()
        self._waker.writer.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._server.accept()
        except OSError as error:  # the client left first, or descriptors ran out: neither may end the loop
            logger.warning("accept failed: %s", error)
            return
        strangers = self._strangers()
        if len(strangers) >= MAX_STRANGERS:  # a crowd of silent ones must not keep peers out
            self._reject(strangers[0])
        opening = challenge()
        connection = Connection(sock, kinds(Hello), limit_bytes=MAX_HANDSHAKE_BYTES)
        peer = Peer(connection, opening, time.monotonic())
        self._peers.add(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)
        self.send(peer, opening)

    def _serve(self, peer: Peer, events: int, arrivals: list[Arrival]) -> None:
        if peer not in self._peers:
            return
        try:
            if events & selectors.EVENT_WRITE:
                peer.connection.flush()
            if events & selectors.EVENT_READ:
                for frame in peer.connection.receive():
                    if peer.actor:
                        arrivals.append(Arrival(peer, frame))
                    else:
                        self._prove(peer, frame)
            self._watch(peer)
        except PeerLost:
            self._drop(peer)
        except WireError as error:
            self.counters.bad_frames += 1
            logger.warning("cutting off %s: %s", peer.actor or "a stranger", error)
            self._drop(peer)

    def _prove(self, peer: Peer, frame: Frame) -> None:
        if not isinstance(frame.message, Hello):
            raise WireError("expected a hello")
        if not frame.message.actor:
            raise WireError("the hello names no actor")
        welcome = admit(
            peer.sent, frame.message, token=self._token, actor=self._actor, incarnation=self._incarnation
        )
        peer.connection.admit(self._accepted)
        peer.connection.send(welcome)
        peer.actor, peer.role = frame.message.actor, frame.message.role  # beats may follow, not come before
        self.counters.accepted += 1

    def _watch(self, peer: Peer) -> None:
        """Ask for write events only while something is queued."""
        if peer.writing != peer.connection.wants_write:
            peer.writing = not peer.writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.writing else 0)
            self._selector.modify(peer.connection, events, peer)

    def _drop(self, peer: Peer) -> None:
        if peer in self._peers:
            self._peers.discard(peer)
            self._selector.unregister(peer.connection)
            peer.connection.close()
            self._gone.append(peer)

    def _strangers(self) -> list[Peer]:
        """Those who have not proved themselves, oldest first."""
        return sorted((peer for peer in self._peers if not peer.actor), key=lambda peer: peer.since_s)

    def _patience_s(self, timeout_s: float | None) -> float | None:
        """timeout_s, or less if a stranger's time is up sooner."""
        strangers = self._strangers()
        if not strangers:
            return timeout_s
        left_s = max(0.0, strangers[0].since_s + HANDSHAKE_TIMEOUT_S - time.monotonic())
        return left_s if timeout_s is None else min(timeout_s, left_s)

    def _expire_strangers(self) -> None:
        now_s = time.monotonic()
        for peer in self._strangers():
            if now_s - peer.since_s >= HANDSHAKE_TIMEOUT_S:
                self._reject(peer)

    def _reject(self, peer: Peer) -> None:
        self.counters.rejected += 1
        self._drop(peer)
