"""Connections: what no application sees. Slow, unread, oversized and malformed ones cost what is written."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from ingress.app import create_app
from ingress.connection import BoundedProtocol
from ingress.engine_client import EngineClient
from ingress.limits import ConnectionLimits, Limits
from tests.unit.app_server import MODEL, PLAIN, TEXT, Served, says
from tests.unit.loopback_engine import TOKEN, http_server

PER_ADDRESS = 40


class Tight(BoundedProtocol):
    limits = ConnectionLimits(connections=50, per_address=PER_ADDRESS, head_read_s=0.12, unread_s=0.3)


class Narrow(BoundedProtocol):
    limits = ConnectionLimits(connections=3)


@contextmanager
def listening(
    served: Served, protocol: type[BoundedProtocol], send_bytes: int | None = None
) -> Iterator[Any]:
    engine = EngineClient([actor.endpoint for actor in served.actors], token=TOKEN, identity="door-c")
    app: FastAPI = create_app(
        engine=engine,
        tokenizer=served.tokenizer,
        model_name=MODEL,
        context_tokens=10**6,
        limits=Limits(body_read_s=0.12),
    )
    with http_server(served.background, app, send_bytes, protocol) as url:
        served.until(lambda: len(engine._candidates()) == 2)
        with httpx.Client(base_url=url, timeout=30, **PLAIN) as http:
            yield http


@pytest.fixture(scope="module")
def tight_once(served_once: Served) -> Iterator[httpx.Client]:
    with listening(served_once, Tight) as http:
        yield http


@pytest.fixture
def tight(served: Served, tight_once: httpx.Client) -> Iterator[httpx.Client]:
    """After each attack it answers as before."""
    before = tight_once.post("/v1/completions", json=TEXT).json()["choices"]
    yield tight_once
    assert tight_once.get("/health").status_code == 200
    assert tight_once.post("/v1/completions", json=TEXT).json()["choices"] == before


def connect(http: httpx.Client) -> socket.socket:
    return socket.create_connection((http.base_url.host, http.base_url.port), timeout=10)


def read_all(connection: socket.socket) -> bytes:
    """To its end; a reset is one."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def read_one(connection: socket.socket) -> bytes:
    """One whole answer."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    [length] = re.findall(rb"content-length: (\d+)", head.lower())
    while len(body) < int(length):
        body += connection.recv(65536)
    return head


def exchange(http: httpx.Client, *parts: bytes) -> bytes:
    with connect(http) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # it has been refused already
        return read_all(connection)


def check_refusal(answer: bytes, status: int) -> dict[str, Any]:
    """In OpenAI's shape, and the connection is closed."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"G", GET, GET + b"a: b\r\n" * 20], ids=len)
def test_a_head_that_does_not_come_is_given_up(tight: httpx.Client, sent: bytes):
    check_refusal(exchange(tight, sent), 408)


def test_after_an_answer_the_next_head_is_waited_for_as_long(tight: httpx.Client):
    with connect(tight) as connection:
        connection.sendall(GET + b"\r\n")
        assert read_one(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"\r\n")  # begins nothing, but ends the idle time
        check_refusal(read_all(connection), 408)


def test_a_head_that_comes_byte_by_byte_is_given_up_too(tight: httpx.Client):
    with connect(tight) as connection:
        began_s = time.monotonic()
        try:
            for byte in GET * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.01)
        except OSError:
            pass  # as promised
        assert time.monotonic() - began_s < 10
        check_refusal(read_all(connection), 408)


def test_a_body_that_comes_byte_by_byte_is_a_408(tight: httpx.Client):
    with connect(tight) as connection:
        connection.sendall(POST + b"content-length: 100000\r\n\r\n")
        try:
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.01)
        except OSError:
            pass
        assert read_one(connection).startswith(b"HTTP/1.1 408")


HEADS: dict[str, tuple[bytes, int]] = {
    "64 KiB of one header": (GET + b"a: " + b"x" * 65536 + b"\r\n\r\n", 431),
    "a header without end": (GET + b"a: " + b"x" * 65536, 431),
    "1000 headers": (GET + b"a: b\r\n" * 1000 + b"\r\n", 431),
    "a long URL": (b"GET /" + b"x" * 65536 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "both lengths": (POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}", 400),
    "a length below 0": (POST + b"content-length: -1\r\n\r\n", 400),
    "a length that is none": (POST + b"content-length: 0x5\r\n\r\n", 400),
    "a chunk that lies": (POST + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    "another encoding first": (POST + b"transfer-encoding: chunked, x\r\n\r\n0\r\n\r\n", 400),
    "a bare line feed": (b"GET /health HTTP/1.1\nhost: x\n\n", 400),
    "a folded header": (GET + b"a: b\r\n c\r\n\r\n", 400),
    "a space before the colon": (GET + b"a : b\r\n\r\n", 400),
    "NUL in a header": (GET + b"a: b\x00c\r\n\r\n", 400),
    "a method of its own": (b"SHOAL /health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "bytes that are no text": (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", 400),
}


@pytest.mark.parametrize(("head", "status"), HEADS.values(), ids=HEADS.keys())
def test_a_bad_head_is_refused_in_shape_and_the_connection_closed(
    tight: httpx.Client, head: bytes, status: int
):
    error = check_refusal(exchange(tight, head), status)
    assert error["code"] == ("request_header_fields_too_large" if status == 431 else "invalid_http")


def test_after_an_early_answer_the_rest_of_a_body_may_come_but_not_for_ever(tight: httpx.Client):
    head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n"
    with connect(tight) as connection:
        connection.sendall(head)
        assert read_one(connection).startswith(b"HTTP/1.1 404")
        connection.sendall(b"x" * 200_000 + GET + b"\r\n")
        assert read_one(connection).startswith(b"HTTP/1.1 200")
    with connect(tight) as connection:
        connection.sendall(head)
        assert read_one(connection).startswith(b"HTTP/1.1 404")
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b"x")
                time.sleep(0.01)


def test_pipelined_requests_and_http_1_0_are_answered(tight: httpx.Client):
    asked = GET + b"\r\n"
    last = asked.replace(b"host: x", b"host: x\r\nconnection: close")
    assert exchange(tight, asked * 3 + last).count(b"HTTP/1.1 200") == 4
    assert exchange(tight, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_head_behind_a_stream_is_bounded_too(served: Served, tight: httpx.Client):
    says(served, "x" * 400, pause_s=0.01)
    content = json.dumps({**TEXT, "max_tokens": 400, "stream": True}).encode()
    with connect(tight) as connection:
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % len(content) + content)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with suppress(OSError):  # as promised
            for _ in range(16):
                connection.sendall(GET + b"a: " + b"x" * 4096)
        answer = read_all(connection)
    served.calm()
    assert b"[DONE]" not in answer and b"HTTP/1.1" not in answer, "cut, and nothing written into the stream"


def test_a_bad_request_behind_one_that_waits_is_not_answered_into_a_stream(
    served: Served, tight: httpx.Client
):
    says(served, "x" * 50, pause_s=0.01)
    content = json.dumps({**TEXT, "max_tokens": 50, "stream": True}).encode()
    with connect(tight) as connection:
        connection.sendall(POST + b"content-length: %d\r\n\r\n" % len(content) + content)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(GET + b"\r\n" + b"SHOAL / HTTP/9.9\r\n\r\n")
        answer = read_all(connection)
    served.calm()
    assert b"HTTP/1.1" not in answer


def test_a_wish_for_a_websocket_is_no_way_in(tight: httpx.Client):
    wish = GET.replace(b"/health", b"/nowhere") + b"connection: upgrade\r\nupgrade: websocket\r\n"
    wish += b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with connect(tight) as connection:
        connection.sendall(wish)
        assert read_one(connection).startswith(b"HTTP/1.1 404")


def test_one_address_cannot_take_every_connection(tight: httpx.Client):
    with ExitStack() as stack:
        held = [stack.enter_context(connect(tight)) for _ in range(PER_ADDRESS - 1)]
        for connection in held:
            connection.sendall(GET)
        refused = check_refusal(exchange(tight), 429)
        assert "this address" in refused["message"]
        assert tight.get("/health").status_code == 200, "its own connection was there before"


def test_beyond_all_connections_there_is_a_503_until_one_ends(served: Served):
    with listening(served, Narrow) as http, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(http))
        assert check_refusal(exchange(http), 503)["code"] == "overloaded"
        stack.close()
        until_s = time.monotonic() + 10
        while not exchange(http, GET + b"connection: close\r\n\r\n").startswith(b"HTTP/1.1 200"):
            assert time.monotonic() < until_s


def test_slow_connections_do_not_keep_a_good_client_waiting(tight: httpx.Client):
    with ExitStack() as stack:
        for number in range(PER_ADDRESS - 1):
            connection = stack.enter_context(connect(tight))
            connection.sendall(GET if number % 2 else POST + b"content-length: 9\r\n\r\n{")
        assert tight.post("/v1/completions", json=TEXT).status_code == 200


def test_what_is_not_read_is_cut_and_its_sequence_cancelled(served: Served):
    says(served, "x" * 900_000, tokens_per_event=200)
    body = {**TEXT, "max_tokens": 900_000, "logprobs": 5, "stream": True}
    with listening(served, Tight, send_bytes=4096) as http:
        host, port = http.base_url.host, http.base_url.port
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, port))
            content = json.dumps(body).encode()
            connection.sendall(POST + b"content-length: %d\r\n\r\n" % len(content) + content)
            served.until(lambda: sum(len(actor.cancelled) for actor in served.actors) == 1)
        assert http.get("/health").status_code == 200


def test_connections_that_come_and_go_leave_nothing_behind(served: Served, tight: httpx.Client):
    async def scenario() -> None:
        for _ in range(3):
            places = [(tight.base_url.host, tight.base_url.port)] * (PER_ADDRESS - 5)
            opened = await asyncio.gather(*(asyncio.open_connection(*place) for place in places))
            for _, writer in opened:
                writer.write(GET[:9])
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for _, writer in opened), return_exceptions=True)

    for _ in range(4):
        asyncio.run(scenario())
    until_s = time.monotonic() + 10  # the last of them may still be closing
    while not exchange(tight, GET + b"connection: close\r\n\r\n").startswith(b"HTTP/1.1 200"):
        assert time.monotonic() < until_s, "who is gone is not counted"
