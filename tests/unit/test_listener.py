"""The door of every actor: strangers gain nothing, peers are served, nobody blocks anybody."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router import listener as listener_module
from router.connection import Connection, connect
from router.handshake import (
    MAX_HANDSHAKE_BYTES,
    PROTOCOL,
    AuthenticationError,
    Challenge,
    Hello,
    Welcome,
    answer,
)
from router.listener import MAX_STRANGERS, Listener
from router.transport import PeerLost
from router.view import ActorId, ExpertActor
from router.wire import MAGIC, PREFIX, FrameParser, WireError, encode, kinds

TOKEN = b"a cluster token for tests"
LIMIT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Echo:
    KIND: ClassVar[str] = "echo"
    number: int


class EchoServer:
    """A listener in a thread that sends back every Echo with its payload."""

    def __init__(self) -> None:
        self.listener = Listener(
            "127.0.0.1", 0, token=TOKEN, actor="server", incarnation=1, accepted=kinds(Echo)
        )
        self.gone: list[str] = []
        self.polls = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def counters(self) -> listener_module.ListenerCounters:
        return self.listener.counters

    def client(self, token: bytes = TOKEN, *, incarnation: int = 1) -> Connection:
        peer = ExpertActor(
            actor_id=ActorId("server"),
            incarnation=incarnation,
            host=self.listener.host,
            port=self.listener.port,
        )
        return connect(peer, token=token, actor="client", incarnation=1, accepted=kinds(Echo))

    def stranger(self) -> socket.socket:
        sock = socket.create_connection((self.listener.host, self.listener.port), timeout=LIMIT_S)
        sock.settimeout(LIMIT_S)
        return sock

    def stop(self) -> None:
        assert self._thread.is_alive(), "the listener's loop has died"
        self._stopping.set()
        self.listener.wake()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for arrival in self.listener.poll(None):
                if arrival.frame is None:
                    self.gone.append(arrival.peer.actor)
                else:
                    assert isinstance(arrival.frame.message, Echo)
                    self.listener.send(arrival.peer, arrival.frame.message, arrival.frame.payload)
            self.polls += 1
        self.listener.close()


@contextmanager
def serving() -> Iterator[EchoServer]:
    server = EchoServer()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(name="server")
def _server() -> Iterator[EchoServer]:
    with serving() as server:
        yield server


def until(condition, what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {LIMIT_S:g} s for {what}"
        time.sleep(0.001)


def read_to_end(sock: socket.socket) -> bytes:
    """Everything until the other end closes; a reset is an end too."""
    got = b""
    try:
        while data := sock.recv(1 << 16):
            got += data
    except ConnectionResetError:
        pass
    return got


def send_all(sock: socket.socket, data: bytes, *, last: bool = False) -> None:
    """Send, and with `last` say that no more comes; being cut off already is what the tests want."""
    with suppress(OSError):
        sock.sendall(data)
        if last:
            sock.shutdown(socket.SHUT_WR)


def opening_of(sock: socket.socket) -> Challenge:
    parser = FrameParser(kinds(Challenge))
    while (frame := parser.next_frame()) is None:
        data = sock.recv(4096)
        assert data, "closed before the challenge"
        parser.feed(data)
    assert isinstance(frame.message, Challenge)
    return frame.message


def a_hello(opening: Challenge, token: bytes = TOKEN) -> Hello:
    return answer(opening, token=token, role="attention", actor="client", incarnation=1)


def exchange_echoes(connection: Connection, *payloads: bytes) -> list[bytes]:
    for number, payload in enumerate(payloads):
        connection.send(Echo(number=number), payload)
    return [payload for _, payload in receive(connection, len(payloads))]


def receive(connection: Connection, count: int) -> list[tuple[Echo, bytes]]:
    got: list[tuple[Echo, bytes]] = []
    deadline_s = time.monotonic() + LIMIT_S
    while len(got) < count:
        assert time.monotonic() < deadline_s, f"{len(got)} of {count} frames came"
        connection.flush()
        got += [(frame.message, bytes(frame.payload)) for frame in connection.receive()]
        time.sleep(0.0005)  # a spinning thread would keep the server's from running
    return got


def test_a_proven_peer_is_answered(server: EchoServer):
    connection = server.client()
    assert exchange_echoes(connection, b"", b"one", b"x" * 100_000) == [b"", b"one", b"x" * 100_000]
    assert server.counters.accepted == 1
    connection.close()
    until(lambda: server.gone == ["client"], "the news that the peer is gone")


def test_the_token_never_crosses_the_socket(server: EchoServer):
    sock = server.stranger()
    hello = encode(a_hello(opening_of(sock)))
    assert TOKEN not in hello
    sock.sendall(hello)
    assert TOKEN not in sock.recv(4096)
    sock.close()


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # a TLS hello
        bytes(4096),
        Random(1).randbytes(100_000),
        MAGIC + bytes(12) + b"\xc1",
        PREFIX.pack(MAGIC, 2**32 - 1, 0),
        PREFIX.pack(MAGIC, 10, 2**64 - 1),
        PREFIX.pack(MAGIC, 4, 0) + b"\xc1\xc1\xc1\xc1",
        PREFIX.pack(b"SHL0", 1, 0) + b"\x80",
        encode(Echo(number=1)),  # well-formed, but nobody has proved anything
        encode(Challenge(protocol=1, nonce=b"")),
        encode(Welcome(actor="server", incarnation=1, proof=b"")),
    ],
)
def test_garbage_is_cut_off_and_counted_while_others_are_served(server: EchoServer, noise: bytes):
    friend = server.client()
    sock = server.stranger()
    send_all(sock, noise)
    assert len(read_to_end(sock)) < 200  # the challenge and no more
    assert server.counters.bad_frames == 1
    assert exchange_echoes(friend, b"still here") == [b"still here"]
    assert server.gone == []  # a stranger is never news
    sock.close()
    friend.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=16, max_size=300), st.booleans())
def test_any_bytes_from_a_stranger_end_in_a_closed_connection(server: EchoServer, noise: bytes, magic: bool):
    sock = server.stranger()
    send_all(sock, (MAGIC if magic else b"") + noise, last=True)
    read_to_end(sock)
    sock.close()
    assert server.counters.accepted == 0


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_is_never_executed(server: EchoServer, tmp_path: Path, protocol: int, framed: bool):
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (canary,)

    payload = pickle.dumps(Bomb(), protocol=protocol)
    pickle.loads(payload)
    assert canary.exists(), "the bomb itself must work, or this test shows nothing"
    canary.unlink()
    if framed:
        payload = PREFIX.pack(MAGIC, len(payload), len(payload)) + payload + payload
    sock = server.stranger()
    send_all(sock, payload, last=True)
    read_to_end(sock)
    friend = server.client()
    friend.send(Echo(number=0), payload)  # nor from a friend
    assert receive(friend, 1)[0][1] == payload
    assert not canary.exists()
    sock.close()
    friend.close()


def test_a_stranger_makes_it_read_one_small_frame_and_no_more(server: EchoServer):
    """A flood of well-formed but unproven hellos costs one of them, not memory or time."""
    sock = server.stranger()
    hello = encode(a_hello(opening_of(sock), token=b"wrong"))
    send_all(sock, hello * 20_000)
    read_to_end(sock)
    assert server.counters.bad_frames == 1
    sock.close()


def test_the_bytes_that_a_stranger_may_have_read_are_bounded():
    """The rest of what it sent stays in the kernel, where its window stops it."""
    one, other = socket.socketpair()
    hello = a_hello(Challenge(protocol=PROTOCOL, nonce=b""))
    payload_bytes = MAX_HANDSHAKE_BYTES // 2
    flood = (encode(hello, payload_bytes) + bytes(payload_bytes)) * 20
    other.sendall(flood)
    connection = Connection(_NoTcp(one), kinds(Hello), limit_bytes=MAX_HANDSHAKE_BYTES)
    assert next(connection.receive()).message == hello
    unread_bytes = len(one.recv(1 << 20))
    assert len(flood) - unread_bytes <= PREFIX.size + MAX_HANDSHAKE_BYTES
    one.close()
    other.close()


@pytest.mark.parametrize("header_bytes", [MAX_HANDSHAKE_BYTES + 1, 1 << 20])
def test_a_stranger_may_not_announce_more_than_a_handshake(server: EchoServer, header_bytes: int):
    sock = server.stranger()
    sock.sendall(PREFIX.pack(MAGIC, header_bytes, 0))
    read_to_end(sock)
    assert server.counters.bad_frames == 1
    sock.close()


def test_a_client_with_the_wrong_token_learns_only_that_it_is_not_welcome(server: EchoServer):
    with pytest.raises(PeerLost):
        server.client(token=b"wrong")
    assert (server.counters.accepted, server.counters.bad_frames) == (0, 1)


def test_a_client_refuses_a_server_that_is_not_the_life_it_looks_for(server: EchoServer):
    with pytest.raises(AuthenticationError, match="life 1"):
        server.client(incarnation=2)


@pytest.mark.parametrize(
    "answer_bytes",
    [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", Random(1).randbytes(64)],
    ids=["nothing", "http", "noise"],
)
def test_a_client_survives_a_server_that_is_not_ours(answer_bytes: bytes):
    listening = socket.create_server(("127.0.0.1", 0))

    def reply() -> None:
        sock, _ = listening.accept()
        sock.sendall(answer_bytes)
        sock.close()

    thread = threading.Thread(target=reply)
    thread.start()
    host, port = listening.getsockname()
    peer = ExpertActor(actor_id=ActorId("server"), incarnation=1, host=host, port=port)
    with pytest.raises((PeerLost, WireError)):
        connect(peer, token=TOKEN, actor="client", incarnation=1, accepted=kinds(Echo))
    thread.join()
    listening.close()


def test_a_client_that_trickles_gives_up_in_time():
    """A peer that sends a byte now and then may not hold the step loop longer than the timeout."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def trickle() -> None:
        sock, _ = listening.accept()
        for byte in PREFIX.pack(MAGIC, 4000, 0) + bytes(4000):
            if ended.wait(0.05):
                break
            send_all(sock, bytes([byte]))
        sock.close()

    thread = threading.Thread(target=trickle)
    thread.start()
    host, port = listening.getsockname()
    peer = ExpertActor(actor_id=ActorId("server"), incarnation=1, host=host, port=port)
    with pytest.raises(PeerLost):
        connect(peer, token=TOKEN, actor="client", incarnation=1, accepted=kinds(Echo), timeout_s=0.3)
    ended.set()
    thread.join()
    listening.close()


def test_an_overheard_hello_opens_no_other_connection(server: EchoServer):
    first, second = server.stranger(), server.stranger()
    overheard = encode(a_hello(opening_of(first)))
    opening_of(second)
    second.sendall(overheard)
    assert read_to_end(second) == b""
    assert (server.counters.accepted, server.counters.bad_frames) == (0, 1)
    first.close()
    second.close()


@pytest.mark.parametrize(
    "bad",
    [
        b"garbage that is no frame",
        encode(Challenge(protocol=1, nonce=b"")),
        PREFIX.pack(MAGIC, 1 << 21, 0),
        PREFIX.pack(MAGIC, 10, 0) + msgpack.packb(["echo", {"n": 1}]),
    ],
)
def test_a_proven_peer_that_sends_a_bad_frame_is_cut_off_and_others_go_on(server: EchoServer, bad: bytes):
    friend = server.client()
    sock = server.stranger()
    sock.sendall(encode(a_hello(opening_of(sock))))
    until(lambda: server.counters.accepted == 2, "the second peer's admission")
    sock.sendall(bad.ljust(PREFIX.size, b"!"))
    read_to_end(sock)
    until(lambda: server.gone == ["client"], "the news that the bad peer is gone")
    assert exchange_echoes(friend, b"on we go") == [b"on we go"]
    assert server.counters.bad_frames == 1
    sock.close()
    friend.close()


def test_what_follows_a_hello_in_the_same_packet_is_read_as_a_peers(server: EchoServer):
    sock = server.stranger()
    sock.sendall(encode(a_hello(opening_of(sock))) + encode(Echo(number=7), 3) + b"abc")
    parser = FrameParser(kinds(Welcome, Echo))
    frames = []
    while len(frames) < 2:
        data = sock.recv(4096)
        assert data, "cut off"
        parser.feed(data)
        while (frame := parser.next_frame()) is not None:
            frames.append(frame)
    assert frames[1].message == Echo(number=7)
    assert bytes(frames[1].payload) == b"abc"
    sock.close()


def test_a_peer_without_a_name_is_refused(server: EchoServer):
    sock = server.stranger()
    nameless = answer(opening_of(sock), token=TOKEN, role="attention", actor="", incarnation=1)
    sock.sendall(encode(nameless))
    assert read_to_end(sock) == b""
    assert (server.counters.accepted, server.counters.bad_frames) == (0, 1)
    sock.close()


def test_a_second_hello_is_a_bad_frame(server: EchoServer):
    sock = server.stranger()
    sock.sendall(encode(a_hello(opening_of(sock))) * 2)
    read_to_end(sock)
    until(lambda: server.counters.bad_frames == 1, "the second hello's refusal")
    sock.close()


def test_large_frames_both_ways_at_once_do_not_block_each_other():
    """Each end has megabytes to send before it reads a byte, through the smallest socket buffers."""
    one, other = socket.socketpair()
    for sock in (one, other):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    payload = os.urandom(3 << 20)
    left, right = UnixConnection(one), UnixConnection(other)
    left.send(Echo(number=1), payload)
    right.send(Echo(number=2), payload[::-1])
    got_left: list[bytes] = []
    got_right: list[bytes] = []
    deadline_s = time.monotonic() + LIMIT_S
    while not (got_left and got_right):
        assert time.monotonic() < deadline_s, "blocked"
        left.flush()
        right.flush()
        got_left += [bytes(frame.payload) for frame in left.receive()]
        got_right += [bytes(frame.payload) for frame in right.receive()]
    assert got_left == [payload[::-1]]
    assert got_right == [payload]
    left.close()
    right.close()


class UnixConnection(Connection):
    """A connection over a socketpair, which has no TCP_NODELAY to set."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(_NoTcp(sock), kinds(Echo))  # type: ignore[arg-type]


class _NoTcp:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def setsockopt(self, *_: object) -> None:
        return

    def __getattr__(self, name: str):
        return getattr(self._sock, name)


def test_a_server_echoes_several_megabytes_to_a_client_that_does_not_read_yet(server: EchoServer):
    payloads = [os.urandom(2 << 20) for _ in range(6)]
    connection = server.client()
    for number, payload in enumerate(payloads):
        connection.send(Echo(number=number), payload)
    other = server.client()
    assert exchange_echoes(other, b"meanwhile") == [b"meanwhile"]
    assert [payload for _, payload in receive(connection, 6)] == payloads
    connection.close()
    other.close()


def test_a_peer_that_never_stops_sending_does_not_starve_the_others(server: EchoServer):
    ended = threading.Event()
    flooding = server.client()
    flooding._sock.settimeout(LIMIT_S)

    def flood() -> None:
        frame = encode(Echo(number=0), 20_000) + bytes(20_000)
        while not ended.is_set():
            send_all(flooding._sock, frame * 10)

    threads = [threading.Thread(target=flood), threading.Thread(target=read_to_end, args=[flooding._sock])]
    for thread in threads:
        thread.start()
    friend = server.client()
    assert exchange_echoes(friend, b"me too") == [b"me too"]
    ended.set()
    flooding._sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(LIMIT_S)
    flooding.close()
    friend.close()


def test_wake_returns_a_waiting_poll_from_another_thread(server: EchoServer):
    before = server.polls
    server.listener.wake()
    until(lambda: server.polls > before, "the poll to return")


def test_many_wakes_are_one_and_never_block():
    listener = Listener("127.0.0.1", 0, token=TOKEN, actor="server", incarnation=1, accepted=kinds(Echo))
    for _ in range(20_000):
        listener.wake()
    while listener._selector.select(0):
        assert listener.poll(0) == []
    listener.close()


def test_waking_a_listener_that_has_closed_is_no_error():
    """`stop` sets a flag and wakes; the loop may see the flag and close before it is woken."""
    listener = Listener("127.0.0.1", 0, token=TOKEN, actor="server", incarnation=1, accepted=kinds(Echo))
    listener.close()
    listener.wake()


def test_silent_strangers_are_sent_away_though_nothing_else_happens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listener_module, "HANDSHAKE_TIMEOUT_S", 0.05)
    with serving() as server:
        sock = server.stranger()
        opening_of(sock)
        assert read_to_end(sock) == b""
        assert server.counters.rejected == 1
        assert server.gone == []
        sock.close()


def test_a_crowd_of_silent_strangers_keeps_no_peer_out(server: EchoServer):
    crowd = [server.stranger() for _ in range(MAX_STRANGERS + 20)]
    until(lambda: server.counters.rejected >= 20, "the surplus to be sent away")
    friend = server.client()
    assert exchange_echoes(friend, b"through the crowd") == [b"through the crowd"]
    strangers = sum(not peer.actor for peer in server.listener._peers)
    assert strangers <= MAX_STRANGERS
    for sock in crowd:
        sock.close()
    friend.close()


def test_those_who_come_and_go_leave_nothing_behind(server: EchoServer):
    open_files = Path("/proc/self/fd")
    server.client().close()
    until(lambda: not server.listener._peers, "the first to leave")
    before = len(list(open_files.iterdir()))
    for turn in range(60):
        if turn % 2:
            server.client().close()
        else:
            server.stranger().close()
    until(lambda: not server.listener._peers, "all of them to leave")
    until(lambda: len(list(open_files.iterdir())) <= before, "their descriptors to close")


def test_a_peer_that_resets_is_news_once(server: EchoServer):
    connection = server.client()
    exchange_echoes(connection, b"hello")
    connection._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    connection.close()
    until(lambda: server.gone, "the news")
    friend = server.client()
    exchange_echoes(friend, b"x")
    assert server.gone == ["client"]
    friend.close()


def test_sending_to_a_peer_that_is_gone_is_news_not_an_error():
    listener = Listener("127.0.0.1", 0, token=TOKEN, actor="server", incarnation=1, accepted=kinds(Echo))
    sock = socket.create_connection((listener.host, listener.port))
    listener.poll(LIMIT_S)
    sock.sendall(encode(a_hello(opening_of(sock))))
    listener.poll(LIMIT_S)
    [peer] = listener._peers
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()
    until(lambda: listener.send(peer, Echo(number=1), b"x" * 1000) or not listener._peers, "the loss")
    arrivals = listener.poll(LIMIT_S)
    assert [(arrival.peer, arrival.frame) for arrival in arrivals] == [(peer, None)]
    listener.send(peer, Echo(number=2))
    assert listener.poll(0) == []
    listener.close()
