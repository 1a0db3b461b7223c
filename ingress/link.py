"""One connection to one attention actor.

Proves the cluster token, sends Submit and Cancel, and hands each event to the sequence it belongs to. An
actor that owes events and gives no sign of life counts as gone. Knows nothing of choosing actors or of
resuming: ingress/engine_client.py does both.

Errors: LinkLost; while opening also OSError, TimeoutError, EOFError and router.wire.WireError.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from actors.messages import Cancel, Events, HandOver, Submit, TokenEvent, unpack_events
from router import handshake, wire
from router.heartbeat import BEAT_S, SILENCE_S, Beat, Silence

logger = logging.getLogger(__name__)

MAX_EVENTS_BYTES = 1 << 26  # of one step
# A host that vanishes says nothing: the kernel asks, and gives up after these many seconds.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES, USER_TIMEOUT_MS = 2, 1, 3, 5000

_HANDSHAKE = wire.kinds(handshake.Challenge, handshake.Welcome)
_SERVING = wire.kinds(Events, Beat)


class LinkLost(Exception):  # noqa: N818 - named for what happened, as the rest of the tree
    """The connection has ended; what was under way on it can be resumed on another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where an attention actor listens. draining: keep its sequences there, give it no new ones."""

    actor_id: str
    host: str
    port: int
    draining: bool = False

    @property
    def place(self) -> tuple[str, str, int]:
        """Of one life: the next one in its seat has the same name."""
        return self.actor_id, self.host, self.port


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """Who this ingress is, and the cluster token that proves it."""

    token: bytes
    identity: str
    incarnation: int


Feed = asyncio.Queue[TokenEvent | None]  # None: the connection is gone, no more will come


class AttentionLink:
    """A live connection, from `open` until `run` returns."""

    def __init__(
        self,
        endpoint: Endpoint,
        incarnation: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.endpoint = endpoint
        self.incarnation = incarnation  # of the life at the other end
        self._reader = reader
        self._writer = writer
        self._feeds: dict[str, Feed] = {}
        self._is_lost = False
        self.was_ended = False  # by the other end, as a death ends it; not for its silence, nor by us
        self._heirs: set[AttentionLink] = set()  # that the actor was last told
        self._silence = Silence()
        self.wait_s = 0.0  # until all that waits there has begun, as the actor last estimated

    @staticmethod
    async def open(endpoint: Endpoint, credentials: Credentials) -> AttentionLink:
        """Connect and shake hands, within handshake.HANDSHAKE_TIMEOUT_S."""
        async with asyncio.timeout(handshake.HANDSHAKE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            try:
                _watch_silence(writer.get_extra_info("socket"))
                incarnation = await _shake_hands(endpoint, credentials, reader, writer)
            except BaseException:  # cancellation too must not leak the socket; always raised again
                writer.transport.abort()
                raise
        return AttentionLink(endpoint, incarnation, reader, writer)

    @property
    def open_sequences(self) -> int:
        return len(self._feeds)

    @property
    def is_lost(self) -> bool:
        """Whether nothing can be sent any more; `run` ends soon if it has not."""
        return self._is_lost

    async def run(self) -> str:
        """Hand out events until the connection ends; returns why it did."""
        watch = asyncio.create_task(self._watch(), name=f"watch of {self.endpoint.actor_id}")
        try:
            while True:
                await self._dispatch_frame()
        except asyncio.IncompleteReadError:
            self.was_ended = not watch.done()
            return "closed by the peer" if self.was_ended else f"silent for {SILENCE_S:g} s"
        except OSError as error:
            self.was_ended = True
            return f"connection lost: {error}"
        except wire.WireError as error:
            return f"not understood: {error}"
        finally:
            watch.cancel()
            self._is_lost = True
            self._writer.transport.abort()  # nothing of ours in its buffer matters any more
            for feed in self._feeds.values():
                feed.put_nowait(None)

    async def submit(self, submit: Submit, payload: bytes) -> Feed:
        """Start or resume a sequence; `release` it in the end. Raises LinkLost."""
        if self._is_lost:
            raise LinkLost(f"{self.endpoint.actor_id} is gone")
        feed = self._feeds[submit.request_id] = Feed()
        self._writer.write(wire.encode(submit, len(payload)) + payload)
        try:
            await self._writer.drain()
        except OSError as error:
            self.release(submit.request_id)
            self._is_lost = True  # at once: until `run` has heard of it, others would be sent here
            self._writer.transport.abort()
            raise LinkLost(f"{self.endpoint.actor_id}: {error}") from None
        except asyncio.CancelledError:
            self.cancel(submit.request_id)
            raise
        return feed

    def release(self, request_id: str) -> None:
        """Events of `request_id` are of no interest any more."""
        self._feeds.pop(request_id, None)

    def cancel(self, request_id: str) -> None:
        """Have the actor forget the sequence; returns at once, what it still sends is dropped."""
        self.release(request_id)
        if not self._is_lost:
            self._writer.write(wire.encode(Cancel(request_id=request_id)))

    def hand_over(self, heirs: Sequence[AttentionLink]) -> None:
        """Have the actor send what is under way here to these, told once of the same; returns at once."""
        if self._is_lost or not heirs or {*heirs} == self._heirs:
            return
        self._heirs = {*heirs}
        places = tuple((h.endpoint.actor_id, h.incarnation, h.endpoint.host, h.endpoint.port) for h in heirs)
        self._writer.write(wire.encode(HandOver(heirs=places)))

    async def _watch(self) -> None:
        """Cut the connection once the actor has owed events and said nothing for SILENCE_S."""
        while self._silence.quiet_s < SILENCE_S:
            await asyncio.sleep(BEAT_S)
            if self._feeds:
                self._silence.listened(BEAT_S)
            else:
                self._silence.heard()
        self._writer.transport.abort()

    async def _dispatch_frame(self) -> None:
        message, payload = await _read_frame(self._reader, _SERVING, MAX_EVENTS_BYTES)
        self._silence.heard()
        if isinstance(message, Beat):
            return
        assert isinstance(message, Events), "_SERVING accepts nothing else"
        self.wait_s = message.wait_s
        events = unpack_events(payload)
        if len(events) != message.num_events:
            raise wire.BadFrame(f"{message.num_events} events announced, {len(events)} came")
        for event in events:
            feed = self._feeds.get(event.request_id)
            if feed is not None:  # else it was cancelled
                feed.put_nowait(event)


async def _shake_hands(
    endpoint: Endpoint,
    credentials: Credentials,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> int:
    """Prove that we hold the token and check that the peer does, and is who we look for; its incarnation."""
    challenge, _ = await _read_frame(reader, _HANDSHAKE, handshake.MAX_HANDSHAKE_BYTES)
    if not isinstance(challenge, handshake.Challenge):
        raise wire.BadFrame("the peer did not begin with a challenge")
    hello = handshake.answer(
        challenge,
        token=credentials.token,
        role="ingress",
        actor=credentials.identity,
        incarnation=credentials.incarnation,
    )
    writer.write(wire.encode(hello))
    welcome, _ = await _read_frame(reader, _HANDSHAKE, handshake.MAX_HANDSHAKE_BYTES)
    if not isinstance(welcome, handshake.Welcome):
        raise wire.BadFrame("the peer did not answer with a welcome")
    handshake.confirm(hello, challenge.nonce, welcome, token=credentials.token)
    if welcome.actor != endpoint.actor_id:
        raise handshake.AuthenticationError(
            f"{endpoint.host}:{endpoint.port} is {welcome.actor[:40]!r}, expected {endpoint.actor_id!r}"
        )
    return welcome.incarnation


async def _read_frame(
    reader: asyncio.StreamReader, accepted: wire.Kinds, limit_bytes: int
) -> tuple[wire.Message, bytes]:
    prefix = await reader.readexactly(wire.PREFIX.size)
    header_bytes, payload_bytes = wire.decode_prefix(prefix, limit_bytes=limit_bytes)
    message = wire.decode_header(await reader.readexactly(header_bytes), accepted)
    return message, await reader.readexactly(payload_bytes)


def _watch_silence(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
        ("TCP_USER_TIMEOUT", USER_TIMEOUT_MS),
    ):
        if hasattr(socket, option):  # not every system has them all
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
