"""One non-blocking socket that carries frames.

Sends queue up and drain when the socket allows, so that two peers that both send much can never block each
other. Sending is safe from any thread, the rest is one thread's. Knows nothing of what the frames mean.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from router.handshake import (
    HANDSHAKE_TIMEOUT_S,
    MAX_HANDSHAKE_BYTES,
    AuthenticationError,
    Challenge,
    Welcome,
    answer,
    confirm,
)
from router.transport import PeerLost
from router.wire import MAX_PAYLOAD_BYTES, Bytes, Frame, FrameParser, Kinds, Message, WireError, encode, kinds

RECEIVE_BYTES = 1 << 18
RECEIVES_PER_TURN = 4  # then the other connections get theirs


class Connection:
    """Frames out and in; raises PeerLost once the other end is gone, WireError if it talks nonsense."""

    def __init__(self, sock: socket.socket, accepted: Kinds, *, limit_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._parser = FrameParser(accepted, limit_bytes)
        self._outgoing: deque[memoryview] = deque()
        self._sending = threading.Lock()
        self.sent_s = time.monotonic()

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._outgoing)

    def admit(self, accepted: Kinds, limit_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        """The peer has proved itself: accept its messages."""
        self._parser.accepted = accepted
        self._parser.limit_bytes = limit_bytes

    def send(self, message: Message, *payload: Bytes) -> None:
        """Queue a frame and send what the socket takes now.

        The payload must not be changed until it is sent.
        """
        views = [memoryview(part).cast("B") for part in payload if len(part)]
        header = memoryview(encode(message, sum(len(view) for view in views)))
        with self._sending:
            self._outgoing.append(header)
            self._outgoing.extend(views)
            self._drain()
        self.sent_s = time.monotonic()

    def flush(self) -> None:
        """Send as much as the socket takes."""
        with self._sending:
            self._drain()

    def _drain(self) -> None:
        try:
            while self._outgoing:
                sent = self._sock.sendmsg(list(islice(self._outgoing, 64)))
                while sent:
                    if sent < len(self._outgoing[0]):
                        self._outgoing[0] = self._outgoing[0][sent:]
                        break
                    sent -= len(self._outgoing.popleft())
        except BlockingIOError:
            return
        except OSError as error:
            raise PeerLost(error.strerror or str(error)) from None

    def receive(self) -> Iterator[Frame]:
        """Every whole frame that is here, one at a time: what follows one is read as `admit` says by then.

        Who stops listening in the middle gets the rest the next time.
        """
        yield from self._frames()
        for _ in range(RECEIVES_PER_TURN):
            # From a stranger nothing is read beyond the frame at hand.
            limited = self._parser.limit_bytes < RECEIVE_BYTES
            wanted = self._parser.missing_bytes if limited else RECEIVE_BYTES
            try:
                data = self._sock.recv(wanted)
            except BlockingIOError:
                return
            except OSError as error:
                raise PeerLost(error.strerror or str(error)) from None
            if not data:
                raise PeerLost("closed by the peer")
            self._parser.feed(data)
            yield from self._frames()
            if len(data) < wanted:
                return

    def _frames(self) -> Iterator[Frame]:
        while (frame := self._parser.next_frame()) is not None:
            yield frame

    def close(self) -> None:
        with self._sending:
            self._sock.close()


class Life(Protocol):
    """Who should be there: one life of an actor, and where it listens."""

    @property
    def actor_id(self) -> str: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


def connect(
    peer: Life,
    *,
    token: bytes,
    actor: str,
    incarnation: int,
    accepted: Kinds,
    role: str = "attention",
    timeout_s: float = HANDSHAKE_TIMEOUT_S,
) -> Connection:
    """A proven connection of one actor to that life of another; raises PeerLost or WireError."""
    host, port = peer.host, peer.port
    deadline_s = time.monotonic() + timeout_s
    try:
        sock = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        raise PeerLost(f"cannot connect to {host}:{port}: {error.strerror or error}") from None
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        parser = FrameParser(kinds(Challenge, Welcome), MAX_HANDSHAKE_BYTES)
        opening = _await_frame(sock, parser, deadline_s).message
        if not isinstance(opening, Challenge):
            raise WireError("the listener did not open with a challenge")
        hello = answer(opening, token=token, role=role, actor=actor, incarnation=incarnation)
        sock.sendall(encode(hello))
        verdict = _await_frame(sock, parser, deadline_s).message
        if not isinstance(verdict, Welcome):
            raise WireError("the listener did not answer with a welcome")
        confirm(hello, opening.nonce, verdict, token=token)
        if (verdict.actor, verdict.incarnation) != (peer.actor_id, peer.incarnation):
            raise AuthenticationError(
                f"{host}:{port} is {verdict.actor[:40]!r} in life {verdict.incarnation}, "
                f"expected {peer.actor_id!r} in life {peer.incarnation}"
            )
    except OSError as error:
        sock.close()
        raise PeerLost(f"handshake with {host}:{port} failed: {error.strerror or error}") from None
    except (WireError, PeerLost):
        sock.close()
        raise
    return Connection(sock, accepted)


def _await_frame(sock: socket.socket, parser: FrameParser, deadline_s: float) -> Frame:
    while (frame := parser.next_frame()) is None:
        # Of the whole handshake: a peer that trickles may not hold us byte by byte.
        sock.settimeout(max(0.001, deadline_s - time.monotonic()))
        data = sock.recv(MAX_HANDSHAKE_BYTES)
        if not data:
            raise PeerLost("closed during the handshake: wrong cluster token?")
        parser.feed(data)
    return frame
