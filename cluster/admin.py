"""The admin listener: what an operator sees and does, apart from the API that clients use.

Its own address and its own key; every route wants the key but the page itself, which holds nothing, and the
two that probes ask. Knows nothing of Ray: it is given something that takes snapshots.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from actors.exposition import exposition
from cluster.snapshot import Looker, Unavailable, controller_samples, targets
from cluster.try_it import continued
from ingress.connection import BoundedProtocol

PAGE = Path(__file__).with_name("page.html")
TRACED_STEPS, MOST_STEPS = 20, 1000
TRACED_S, LONGEST_S = 5.0, 60.0
NONCE = "{nonce}"
Handler = Callable[[Request], Awaitable[Response]]


def create_admin(looker: Looker, key: str, own: Callable[[], str] = lambda: "127.0.0.1:0") -> FastAPI:
    """The application. own: host:port of its listener, for Prometheus' discovery."""
    app = FastAPI(title="Shoal admin", docs_url=None, redoc_url=None, openapi_url=None)

    async def snapshot(_: Request) -> Response:
        return _json(await run_in_threadpool(looker.snapshot))

    async def discover(_: Request) -> Response:
        return _json(targets(await run_in_threadpool(looker.snapshot), own()))

    async def metrics(_: Request) -> Response:
        seen = await run_in_threadpool(looker.snapshot)
        body = exposition(lambda: controller_samples(seen))
        return Response(body, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    async def kill(request: Request) -> Response:
        actor_id, at_s = request.path_params["actor_id"], time.monotonic()
        if await run_in_threadpool(looker.kill, actor_id):
            return _json({"killed": actor_id, "at_s": at_s})
        return _json({"error": f"{actor_id[:40]!r} is no actor that serves"}, 404)

    async def ready(_: Request) -> Response:
        try:
            is_ready = (await run_in_threadpool(looker.snapshot))["ready"]
        except Unavailable:
            is_ready = False
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def alive(_: Request) -> Response:
        return Response(status_code=200)

    async def trace(request: Request) -> Response:
        try:
            steps = int(request.query_params.get("steps", TRACED_STEPS))
            seconds = float(request.query_params.get("seconds", TRACED_S))
        except ValueError:
            return _json({"error": "steps is a whole number, seconds a number"}, 400)
        if not (1 <= steps <= MOST_STEPS and 0 < seconds <= LONGEST_S):
            return _json({"error": f"1 to {MOST_STEPS} steps, up to {LONGEST_S:g} seconds"}, 400)
        return _json(await run_in_threadpool(looker.trace, steps, seconds))

    async def try_it(request: Request) -> Response:
        seen = await run_in_threadpool(looker.snapshot)
        try:
            return await continued(seen["url"], seen["model"], await _object(request))
        except ValueError as error:
            return _json({"error": str(error)}, 400)

    async def order(request: Request) -> Response:
        try:
            arguments = await _object(request)
        except ValueError as error:
            return _json({"error": str(error)}, 400)
        done = await run_in_threadpool(looker.order, request.path_params["order"], arguments)
        return _json(done, 400 if "error" in done else 200)

    for method, path, handler in (
        ("GET", "/snapshot", snapshot),
        ("GET", "/targets", discover),
        ("GET", "/metrics", metrics),
        ("POST", "/trace", trace),
        ("POST", "/try", try_it),
        ("POST", "/actors/{actor_id}/kill", kill),
        ("POST", "/orders/{order}", order),
    ):
        app.add_route(path, _guarded(handler, key), methods=[method])
    app.add_route("/health", alive, methods=["GET"])
    app.add_route("/ready", ready, methods=["GET"])
    app.add_route("/ui", _under_own_name(_page, own), methods=["GET"])
    return app


class AdminServer:
    """The application on a thread of its own, until closed; OSError when the address cannot be bound."""

    def __init__(self, looker: Looker, host: str, port: int, key: str) -> None:
        self._socket = socket.create_server((host, port))
        self.key = key
        self.host, self.port = host, int(self._socket.getsockname()[1])
        app = create_admin(looker, key, lambda: f"{self.host}:{self.port}")
        config = uvicorn.Config(app, http=BoundedProtocol, log_level="error", access_log=False)
        self._server = uvicorn.Server(config)
        run = {"sockets": [self._socket]}
        self._thread = threading.Thread(target=self._server.run, kwargs=run, name="admin", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=5.0)
        self._socket.close()


async def _object(request: Request) -> dict[str, Any]:
    """The body; raises ValueError."""
    try:
        given = json.loads(await request.body() or b"{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError("the body is no JSON object")
    return given


def _guarded(handler: Handler, key: str) -> Handler:
    """401 without the key; the comparison takes as long for any other."""

    async def guarded(request: Request) -> Response:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            refusal = _json({"error": "the admin key is missing or wrong: authorization: Bearer KEY"}, 401)
            refusal.headers["www-authenticate"] = "Bearer"
            return refusal
        try:
            return await handler(request)
        except Unavailable as error:
            return _json({"error": f"{error}; try again in a moment"}, 503)

    return guarded


def _under_own_name(handler: Handler, own: Callable[[], str]) -> Handler:
    """421 where it is asked for by a name that others could make lead here (DNS rebinding).

    An address is none; nor are this machine's names and the one it was told to listen at.
    """

    async def named(request: Request) -> Response:
        name = _host_of(request.headers.get("host", ""))
        known = {"localhost", socket.gethostname().lower(), _host_of(own())}
        if name in known or _is_address(name):
            return await handler(request)
        return _json({"error": "this page is opened by the address of its host"}, 421)

    return named


def _host_of(place: str) -> str:
    """Without its port."""
    if place.startswith("["):
        return place[1:].partition("]")[0]
    return place.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _page(_: Request) -> Response:
    """The live page; nothing in it comes from elsewhere, and nothing may."""
    nonce = secrets.token_urlsafe(16)
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = PAGE.read_text(encoding="utf-8").replace(NONCE, nonce)
    headers = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
    }
    return Response(page, media_type="text/html", headers=headers)


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status_code=status, media_type="application/json")
