"""The OpenAI-compatible HTTP application.

Routes, and nothing else: bodies become orders (ingress/desk.py), orders become answers
(ingress/stream.py). Knows nothing of Ray Serve: it runs under any ASGI server.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from actors.messages import Terms
from ingress.answer import Answer, Heading
from ingress.body import read_body
from ingress.chat_answer import ChatAnswer
from ingress.compiler import GrammarCompiler
from ingress.desk import OrderDesk
from ingress.engine_client import Call, EngineClient
from ingress.errors import Overloaded, install_handlers
from ingress.generation import Generation
from ingress.guard import RequestGuard
from ingress.key_guard import METER, KeyGuard, tenant_of
from ingress.keys import KeyRing
from ingress.limits import Limits
from ingress.messages_answer import MessagesAnswer
from ingress.openapi import document
from ingress.order import Order
from ingress.probe import one_token
from ingress.quota import Grant
from ingress.responses_answer import ResponsesAnswer
from ingress.stream import IGNORED_HEADER, AnswerResponse, Delivery
from ingress.text_answer import TextAnswer
from ingress.tokens import Tokenizer

PREFIXES = ("/v1", "", "/beta")  # OpenAI's place, DeepSeek's, and DeepSeek's for prefixes and suffixes

T = TypeVar("T")


def create_app(
    *,
    engine: EngineClient,
    tokenizer: Tokenizer,
    model_name: str,
    context_tokens: int,
    aliases: Sequence[str] = (),
    limits: Limits | None = None,
    keys: KeyRing | None = None,
    replicas: int = 1,
    compiler: GrammarCompiler | None = None,
) -> FastAPI:
    """The application; engine and compiler live and end with it. aliases: more names of the model.

    keys: None lets everybody in. replicas: how many such applications share the limits of a key.
    """
    desk = OrderDesk(
        tokenizer=tokenizer, model_name=model_name, aliases=aliases, context_tokens=context_tokens
    )
    compiler = compiler or GrammarCompiler(tokenizer.directory)
    door = Door(engine, desk, compiler, limits or Limits(), created=int(time.time()))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        compiler.close()
        await engine.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    install_handlers(app)
    if keys is not None:
        app.add_middleware(KeyGuard, ring=keys, replicas=replicas)
    app.add_middleware(RequestGuard, answered=engine.metrics.answered)  # outermost
    described = document(desk.names, _version(), prefixes=PREFIXES, has_keys=keys is not None)
    app.add_route("/openapi.json", lambda _: _json(described))
    for method, path, handler in _routes(door):
        app.add_api_route(path, handler, methods=[method], response_class=Response)
    return app


def _routes(door: Door) -> Iterator[tuple[str, str, Callable[..., Awaitable[Response]]]]:
    for prefix in PREFIXES:
        yield "POST", f"{prefix}/chat/completions", door.chat
        yield "POST", f"{prefix}/completions", door.complete
        yield "GET", f"{prefix}/models", door.models
        yield "GET", f"{prefix}/models/{{name:path}}", door.model
    yield "POST", "/v1/responses", door.respond
    for prefix in ("/v1", "/anthropic/v1"):
        yield "POST", f"{prefix}/messages", door.message
        yield "POST", f"{prefix}/messages/count_tokens", door.count_tokens
    yield "POST", "/tokenize", door.tokenize
    yield "POST", "/detokenize", door.detokenize
    yield "GET", "/tokenizer_info", door.tokenizer_info
    yield "GET", "/health", door.health
    yield "GET", "/ready", door.ready
    yield "GET", "/load", door.load
    yield "GET", "/version", door.version


class Door:
    """The handlers of the routes."""

    def __init__(
        self,
        engine: EngineClient,
        desk: OrderDesk,
        compiler: GrammarCompiler,
        limits: Limits,
        *,
        created: int,
    ) -> None:
        self._engine = engine
        self._desk = desk
        self._compiler = compiler
        self._limits = limits
        self._created = created

    async def chat(self, request: Request) -> Response:
        order = await self._read(request, self._desk.chat)
        heading = self._heading("chatcmpl")
        return self._deliver(request, order, heading, ChatAnswer(heading, order, self._desk.tokenizer))

    async def complete(self, request: Request) -> Response:
        order = await self._read(request, self._desk.completion)
        heading = self._heading("cmpl")
        return self._deliver(request, order, heading, TextAnswer(heading, order, self._desk.tokenizer))

    async def message(self, request: Request) -> Response:
        order = await self._read(request, self._desk.messages)
        heading = self._heading("msg")
        return self._deliver(request, order, heading, MessagesAnswer(heading, order))

    async def respond(self, request: Request) -> Response:
        order, told = await self._read(request, self._desk.responses)
        heading = self._heading("resp")
        return self._deliver(request, order, heading, ResponsesAnswer(heading, told))

    async def count_tokens(self, request: Request) -> Response:
        told = await self._read(request, self._desk.count_tokens)
        return _json({"input_tokens": told.value}, told.ignored_fields)

    async def tokenize(self, request: Request) -> Response:
        told = await self._read(request, self._desk.tokenize)
        ids, most = told.value, self._desk.context_tokens
        return _json({"count": len(ids), "max_model_len": most, "tokens": ids}, told.ignored_fields)

    async def detokenize(self, request: Request) -> Response:
        told = await self._read(request, self._desk.detokenize)
        return _json({"prompt": told.value}, told.ignored_fields)

    async def tokenizer_info(self) -> Response:
        return _json(self._desk.tokenizer_info())

    async def models(self) -> Response:
        return _json({"object": "list", "data": [self._model(name) for name in self._desk.names]})

    async def model(self, name: str) -> Response:
        self._desk.check_model(name)
        return _json(self._model(name))

    async def health(self, generate: bool = False) -> Response:
        """Liveness: this process answers; with generate=1, and the engine makes a token."""
        if generate:
            await one_token(self._engine)
        return Response(status_code=200)

    async def ready(self) -> Response:
        """Readiness: a request sent now would find an attention actor."""
        if not await self._engine.ready():
            raise Overloaded("no attention actor is connected", retry_after_s=self._engine.wait_s)
        return _json({"status": "ready"})

    async def load(self) -> Response:
        """How much is under way here, and the least wait at an attention actor."""
        return _json(
            {
                "server_load": self._engine.open_sequences,
                "max_server_load": self._limits.open_sequences,
                "wait_s": self._engine.wait_s,
            }
        )

    async def version(self) -> Response:
        return _json({"version": _version()})

    async def _read(self, request: Request, understand: Callable[[bytes], T]) -> T:
        """The body as `understand` sees it; a long one is read on a thread."""
        body = await read_body(request, self._limits)
        if len(body) <= self._limits.inline_bytes:
            return understand(body)
        return await asyncio.to_thread(understand, body)

    def _deliver(self, request: Request, order: Order, heading: Heading, answer: Answer) -> Response:
        if self._engine.open_sequences + len(order.samplings) > self._limits.open_sequences:
            raise Overloaded(
                f"{self._engine.open_sequences} sequences are under way, the most served at once is "
                f"{self._limits.open_sequences}",
                retry_after_s=self._engine.wait_s,
            )
        call = self._call(request, order)
        generation = Generation(
            self._engine, order, self._desk.tokenizer, heading.answer_id, call, self._compiler
        )
        meter = request.scope["state"].get(METER)
        return AnswerResponse(
            Delivery(
                order=order,
                generation=generation,
                answer=answer,
                limits=self._limits,
                grant=meter.admit(order.num_prompt_tokens, len(order.samplings)) if meter else Grant(),
                request_id=request.scope["state"]["request_id"],
            )
        )

    def _call(self, request: Request, order: Order) -> Call:
        """Batch may wait for as long as its deadline lets it; what is interactive, for max_queue_s."""
        waits = [] if order.is_batch else [self._limits.max_queue_s]
        deadline_s = None
        if order.deadline_s is not None:
            waits.append(order.deadline_s)
            deadline_s = asyncio.get_running_loop().time() + order.deadline_s
        terms = Terms(
            tenant=tenant_of(request.scope),
            is_batch=order.is_batch,
            max_wait_s=min(waits, default=None),
            cache_salt=order.cache_salt,
        )
        return Call(terms=terms, deadline_s=deadline_s, parent=request.headers.get("traceparent"))

    def _heading(self, kind: str) -> Heading:
        # Never made of what a client sent: ids of two requests must not meet.
        answer_id = f"{kind}-{secrets.token_hex(16)}"
        return Heading(answer_id=answer_id, created=int(time.time()), model=self._desk.model_name)

    def _model(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "root": self._desk.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "shoal",
            "max_model_len": self._desk.context_tokens,
        }


def _json(value: dict[str, Any], ignored_fields: str = "") -> Response:
    headers = {IGNORED_HEADER: ignored_fields} if ignored_fields else None
    return Response(json.dumps(value), media_type="application/json", headers=headers)


def _version() -> str:
    try:
        return importlib.metadata.version("shoal")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"  # run from a checkout that is not installed
