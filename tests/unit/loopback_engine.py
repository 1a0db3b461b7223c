"""An attention endpoint without a model, on a real socket.

Speaks the server's side of the handshake, Submit, Cancel and Events; each token is a pure function of the ids
before it. Loses connections on command. Knows nothing of text. Beside it: how tests run the application.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI

from actors.messages import (
    FINISH_CANCELLED,
    FINISH_ERROR,
    FINISH_LENGTH,
    FINISH_OVERLOADED,
    FINISH_STOP,
    Cancel,
    Events,
    HandOver,
    Submit,
    Terms,
    TokenEvent,
    end_event,
    pack_events,
    taken_event,
)
from ingress.connection import BoundedProtocol
from ingress.link import Endpoint
from model.sampling import Sampling
from router import handshake, wire
from router.heartbeat import Beat

T = TypeVar("T")
TokenFunction = Callable[
    [Sequence[int], int], int
]  # (ids so far, how many of them are the prompt) -> next id

TOKEN = b"a cluster token for tests"
EOS_ID = 1
FIRST_BYTE_ID = 16  # of the byte tokenizer: byte b is token 16 + b


def hashed(ids: Sequence[int], num_prompt: int) -> int:
    """A printable ASCII byte that depends on every id so far."""
    digest = hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).digest()
    return FIRST_BYTE_ID + 32 + digest[0] % 95


def saying(text: str | Sequence[int]) -> TokenFunction:
    """Says `text` (or these ids), then ends, whatever the prompt."""
    ids = [FIRST_BYTE_ID + byte for byte in text.encode()] if isinstance(text, str) else list(text)

    def next_id(so_far: Sequence[int], num_prompt: int) -> int:
        place = len(so_far) - num_prompt
        return ids[place] if place < len(ids) else EOS_ID

    return next_id


@dataclass
class _Running:
    ids: list[int]
    num_prompt: int
    sampling: Sampling
    terms: Terms
    waits: bool  # a suspect, until it is let in

    def append(self, token_id: int) -> str | None:
        self.ids.append(token_id)
        stops = self.sampling.stop_token_ids + (() if self.sampling.ignore_eos else (EOS_ID,))
        if token_id in stops:
            return FINISH_STOP
        is_full = len(self.ids) - self.num_prompt >= self.sampling.max_tokens
        return FINISH_LENGTH if is_full else None


@dataclass
class LoopbackEngine:
    """tokens_per_event: how many tokens of a sequence one step makes. pause_s: between steps.

    drop_after: a connection is cut once, when it has sent this many tokens. fail: sequences end in an error.
    refuse: what may be refused is, as soon as anything else on its connection has advanced. num_cached: told
    with the first token of each sequence. fatal_seed: a sequence of it cuts all connections when it
    advances. moves: when told to hand over, all sequences go to the first heir.
    """

    actor_id: str = "attention-0"
    token: bytes = TOKEN
    next_id: TokenFunction = hashed
    tokens_per_event: int = 1
    pause_s: float = 0.0
    drop_after: int | None = None
    fail: bool = False
    refuse: bool = False
    mute: bool = False  # no sequence of it advances
    takes: bool = True  # says so at once
    beats: bool = False  # while mute: that it lives
    num_cached: int | None = None
    fatal_seed: int | None = None
    moves: bool = False
    submits: list[Submit] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    handovers: list[HandOver] = field(default_factory=list)
    num_steps: int = 0
    num_deaths: int = 0

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(actor_id=self.actor_id, host="127.0.0.1", port=self.port)

    async def start(self) -> Endpoint:
        """Listen; after a stop on the same port again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.endpoint

    async def stop(self) -> None:
        """As if the process were killed."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.drop_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._welcome(reader, writer)
            await self._converse(reader, writer)
        except (OSError, EOFError, wire.WireError, asyncio.CancelledError):
            pass  # the peer is gone or no peer of ours: this endpoint only has to stay alive
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        challenge = handshake.challenge()
        writer.write(wire.encode(challenge))
        hello, _ = await _read(reader, wire.kinds(handshake.Hello))
        welcome = handshake.admit(challenge, hello, token=self.token, actor=self.actor_id, incarnation=1)
        writer.write(wire.encode(welcome))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running: dict[str, _Running] = {}
        has_work = asyncio.Event()
        stepping = asyncio.create_task(self._step(running, has_work, writer))
        try:
            while True:
                message, payload = await _read(reader, wire.kinds(Submit, Cancel, HandOver))
                if isinstance(message, Submit):
                    self._submit(message, payload, running)
                    if self.takes and not running[message.request_id].waits:
                        _send(writer, [taken_event(message.request_id, message.num_emitted)])
                    has_work.set()
                elif isinstance(message, HandOver):
                    self.handovers.append(message)
                    if self.moves:
                        _send(
                            writer,
                            [_moved(name, one, message, self.num_cached) for name, one in running.items()],
                        )
                        running.clear()
                else:
                    self.cancelled.append(message.request_id)
                    if running.pop(message.request_id, None) is not None:
                        gone = TokenEvent(
                            request_id=message.request_id, first=0, token_ids=(), finish=FINISH_CANCELLED
                        )
                        _send(writer, [gone])
        finally:
            stepping.cancel()

    def _submit(self, submit: Submit, payload: bytes, running: dict[str, _Running]) -> None:
        assert submit.request_id not in running, f"{submit.request_id} is submitted twice"
        self.submits.append(submit)
        running[submit.request_id] = _Running(
            ids=list(struct.unpack(f"<{submit.num_prompt + submit.num_emitted}i", payload)),
            num_prompt=submit.num_prompt,
            sampling=Sampling(**submit.sampling),
            terms=(terms := Terms(**submit.terms)),
            waits=terms.is_suspect,
        )

    async def _step(
        self, running: dict[str, _Running], has_work: asyncio.Event, writer: asyncio.StreamWriter
    ) -> None:
        num_sent = 0
        while True:
            if not running:
                has_work.clear()
                await has_work.wait()
            await asyncio.sleep(0.001 if self.mute else self.pause_s)
            if self.mute:
                if self.beats:
                    writer.write(wire.encode(Beat()))
                continue
            refused = {name for name, one in running.items() if self.refuse and not one.terms.is_promised}
            self._let_in(running, writer)
            active = {name: one for name, one in running.items() if name not in refused and not one.waits}
            if self.fatal_seed in [one.sampling.seed for one in active.values()]:
                self.num_deaths += 1
                await writer.drain()
                self.drop_connections()
                return
            events = [self._advance(name, one) for name, one in active.items()]
            if events:
                events += [end_event(name, 0, FINISH_OVERLOADED, "too late", 1.0) for name in refused]
            for event in events:
                if event.finish is not None:
                    del running[event.request_id]
            if events:
                self.num_steps += 1
                _send(writer, events)
            num_sent += sum(len(event.token_ids) for event in events)
            if self.drop_after is not None and num_sent >= self.drop_after:
                self.drop_after = None
                await writer.drain()
                writer.transport.abort()

    def _let_in(self, running: dict[str, _Running], writer: asyncio.StreamWriter) -> None:
        """One suspect, when the one before has ended."""
        suspects = [(name, one) for name, one in running.items() if one.terms.is_suspect]
        if suspects and suspects[0][1].waits:
            name, one = suspects[0]
            one.waits = False
            _send(writer, [taken_event(name, len(one.ids) - one.num_prompt)])

    def _advance(self, name: str, sequence: _Running) -> TokenEvent:
        first = len(sequence.ids) - sequence.num_prompt
        if self.fail:
            return TokenEvent(
                request_id=name, first=first, token_ids=(), finish=FINISH_ERROR, error="/secret/path"
            )
        finish = None
        while finish is None and len(sequence.ids) - sequence.num_prompt < first + self.tokens_per_event:
            finish = sequence.append(self.next_id(sequence.ids, sequence.num_prompt))
        made = tuple(sequence.ids[sequence.num_prompt + first :])
        wanted = sequence.sampling.logprobs
        return TokenEvent(
            request_id=name,
            first=first,
            token_ids=made,
            logprobs=() if wanted is None else tuple(-0.5 for _ in made),
            top=() if not wanted else tuple(_likeliest(token_id, wanted) for token_id in made),
            num_cached=self.num_cached if first == 0 else None,
            **(_prompt_scores(sequence) if first == 0 and sequence.sampling.of_prompt else {}),
            finish=finish,
        )


def _moved(name: str, sequence: _Running, told: HandOver, num_cached: int | None) -> TokenEvent:
    return TokenEvent(
        request_id=name,
        first=len(sequence.ids) - sequence.num_prompt,
        token_ids=(),
        num_cached=num_cached,
        moved_to=told.heirs[0][0],
    )


def _prompt_scores(sequence: _Running) -> dict[str, Any]:
    scored, wanted = sequence.ids[1 : sequence.num_prompt], sequence.sampling.logprobs
    top = tuple(_likeliest(token_id, wanted) for token_id in scored) if wanted else ()
    return {"prompt_logprobs": tuple(-0.25 for _ in scored), "prompt_top": top}


def _likeliest(token_id: int, count: int) -> tuple[tuple[int, float], ...]:
    others = ((FIRST_BYTE_ID + (token_id + rank) % 256, -1.0 - rank) for rank in range(1, count))
    return ((token_id, -0.5), *others)


def _send(writer: asyncio.StreamWriter, events: list[TokenEvent]) -> None:
    payload = pack_events(events)
    frame = Events(num_events=len(events), num_waiting=0, num_running=len(events), free_pages=1)
    writer.write(wire.encode(frame, len(payload)) + payload)


async def _read(reader: asyncio.StreamReader, accepted: wire.Kinds) -> tuple[Any, bytes]:
    header_bytes, payload_bytes = wire.decode_prefix(await reader.readexactly(wire.PREFIX.size))
    message = wire.decode_header(await reader.readexactly(header_bytes), accepted)
    return message, await reader.readexactly(payload_bytes)


class Background:
    """An event loop on a thread of its own, so that blocking clients can be tested against it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def http_server(
    background: Background,
    app: FastAPI,
    send_bytes: int | None = None,
    protocol: type[BoundedProtocol] = BoundedProtocol,
) -> Iterator[str]:
    """`app` as Serve's proxy listens, on a free port; yields its URL. send_bytes: the kernel's buffer."""
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio does this only for sockets that name their protocol; without it a body waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if send_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    config = uvicorn.Config(app, http=protocol, log_level="error", access_log=False)
    server = uvicorn.Server(config)

    async def start() -> asyncio.Task[None]:
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            assert not serving.done(), "uvicorn did not start"
            await asyncio.sleep(0.005)
        return serving

    async def stop(serving: asyncio.Task[None]) -> None:
        server.should_exit = True
        await serving

    serving = background.run(start())
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        background.run(stop(serving))
        listener.close()
