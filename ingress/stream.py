"""An answer on its way to the client, whole or as server-sent events.

Runs an order for as long as the client listens: when it leaves, or reads nothing for too long, every
sequence is cancelled. Knows nothing of the shapes it writes (ingress/answer.py).

Errors before the first byte are raised; later ones become an event of the stream, which always ends as its
dialect does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ingress.answer import Answer, Json, Usage, joined
from ingress.errors import RequestError, internal_error
from ingress.generation import Generation
from ingress.limits import Limits
from ingress.order import Order
from ingress.output import Delta
from ingress.quota import Grant

logger = logging.getLogger(__name__)

IGNORED_HEADER = "x-ignored-fields"
KEEP_ALIVE = b": keep-alive\n\n"
STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
INLINE_TOKENS = 512  # larger answers are written on a thread


class ClientGone(Exception):  # noqa: N818 - named for what happened, as the rest of the tree
    """Nobody reads any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One order and what is needed to answer it."""

    order: Order
    generation: Generation
    answer: Answer
    limits: Limits
    grant: Grant
    request_id: str


class AnswerResponse(Response):
    """The response to one delivery; generation begins when it is called and never outlives the call."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__()
        self._delivery = delivery

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        deliver = _deliver_stream if self._delivery.order.is_stream else _deliver_whole
        try:
            await _while_connected(receive, deliver(self._delivery, _Sender(self._delivery, send)))
        finally:
            self._delivery.grant.end()


async def _deliver_whole(delivery: Delivery, sender: _Sender) -> None:
    order = delivery.order
    usage = Usage.of(order)
    made: list[list[Delta]] = [[] for _ in order.samplings]
    async with delivery.generation as generation:
        while not generation.is_done:
            delta = await generation.next_delta()
            usage.add(delta)
            delivery.grant.spend(len(delta.token_ids))
            made[delta.index].append(delta)
    delivery.grant.end()  # before its last byte: who has read that may ask again

    def write() -> bytes:
        return _json(delivery.answer.whole([joined(deltas) for deltas in made], usage))

    is_small = usage.num_completion <= INLINE_TOKENS
    body = write() if is_small else await asyncio.to_thread(write)
    await sender.start({"content-type": "application/json", "content-length": str(len(body))})
    await sender.send(body, is_last=True)


async def _deliver_stream(delivery: Delivery, sender: _Sender) -> None:
    try:
        await _stream_deltas(delivery, sender)
    except RequestError as error:
        delivery.grant.end()
        await _end_with_error(delivery, sender, error)
    except ClientGone:
        raise
    except Exception as error:  # a stream must end in words, whatever went wrong
        if sender.has_started:
            logger.exception("request %s failed in its stream", delivery.request_id)
        await _end_with_error(delivery, sender, error)
    end = delivery.answer.end
    await sender.send(f"data: {end}\n\n".encode() if end else b"", is_last=True)


async def _stream_deltas(delivery: Delivery, sender: _Sender) -> None:
    answer, usage = delivery.answer, Usage.of(delivery.order)

    async def send(chunks: list[Json]) -> None:
        if delivery.order.continuous_usage:
            chunks = [{**chunk, "usage": usage.fields()} for chunk in chunks]
        await sender.send(b"".join(_event(chunk, answer.name(chunk)) for chunk in chunks))

    async with delivery.generation as generation:
        while not generation.is_done:
            delta = await next_delta(generation, sender.silence_left_s)
            if not sender.has_started:
                await sender.start(STREAM_HEADERS)
                await send(answer.opening())
            if delta is None:
                await sender.send(KEEP_ALIVE)
                continue
            usage.add(delta)
            delivery.grant.spend(len(delta.token_ids))
            if generation.is_done:
                delivery.grant.end()  # before its last byte: who has read that may ask again
            await send(answer.chunks(delta))
    await send(answer.closing(usage))


async def next_delta(generation: Generation, patience_s: float) -> Delta | None:
    """None: nothing for `patience_s`."""
    try:
        async with asyncio.timeout(patience_s) as patience:
            return await generation.next_delta()
    except TimeoutError:
        if not patience.expired():  # what is up is somebody else's time: a failure like any other
            raise
        return None


async def _end_with_error(delivery: Delivery, sender: _Sender, error: Exception) -> None:
    """As an event if the stream has begun; else it is raised, and answered with a status of its own."""
    if not sender.has_started:
        raise error
    shown = error if isinstance(error, RequestError) else internal_error(delivery.request_id)
    failure = delivery.answer.failure(shown)
    await sender.send(_event(failure, delivery.answer.name(failure)))


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work` until it is done or the client leaves; either way nothing of it is left running."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnection(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    except ClientGone:
        logger.info("a client stopped reading: its sequences are cancelled")
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnection(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Sender:
    """The way to the client: what is sent, and whether anything was."""

    def __init__(self, delivery: Delivery, send: Send) -> None:
        self.has_started = False
        self._ignored_fields = delivery.order.ignored_fields
        self._patience_s = delivery.limits.send_s
        self._keep_alive_s = delivery.limits.keep_alive_s
        self._send = send
        self._sent_at_s = asyncio.get_running_loop().time()

    @property
    def silence_left_s(self) -> float:
        """How much longer nothing may be sent, whether nothing is made or nothing of it can be told yet."""
        silent_s = asyncio.get_running_loop().time() - self._sent_at_s
        return max(0.0, self._keep_alive_s - silent_s)

    async def start(self, headers: dict[str, str]) -> None:
        self.has_started = True
        if self._ignored_fields:
            headers = {**headers, IGNORED_HEADER: self._ignored_fields}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._pass_on({"type": "http.response.start", "status": 200, "headers": raw})

    async def send(self, data: bytes, *, is_last: bool = False) -> None:
        if data or is_last:
            self._sent_at_s = asyncio.get_running_loop().time()
            await self._pass_on({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def _pass_on(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._send(message)
        except OSError:  # TimeoutError is one: the client takes nothing
            raise ClientGone from None


def _event(value: Json, name: str | None) -> bytes:
    named = b"" if name is None else b"event: " + name.encode() + b"\n"
    return named + b"data: " + _json(value) + b"\n\n"


def _json(value: dict[str, Any]) -> bytes:
    """ASCII, so that no reader can cut a character or take one for the end of a line."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
