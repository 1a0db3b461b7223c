"""Nobody in without a key.

Every path is closed but two, and they tell nothing but that they answer. Counts each request of a key, and
tells in headers what is left. Knows nothing of routes, nor of what a request is for.

The path is the one that was asked for (scope["path"]), never one put together from headers.
"""

from __future__ import annotations

import hashlib
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingress.errors import RequestError, Unauthorized, error_response
from ingress.keys import ApiKey, KeyRing, find
from ingress.quota import Meter, Quota

logger = logging.getLogger(__name__)

OPEN = ("/health", "/ready")
KEY, METER = "api_key", "meter"  # in scope["state"]
TENANT_CHARS = 32


class KeyGuard:
    """ASGI middleware; `scope["state"]` holds the key's entry and its meter further in."""

    def __init__(self, app: ASGIApp, ring: KeyRing, replicas: int = 1) -> None:
        self._app, self._ring, self._replicas = app, ring, replicas
        self._meters: dict[ApiKey, Meter] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_open(scope):
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._guarded(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            key = self._key(given_key(Headers(scope=scope)))
        except RequestError as error:
            await error_response(error, path=scope["path"])(scope, receive, send)
            return
        meter = self._meter(key)
        scope.setdefault("state", {}).update({KEY: key, METER: meter})

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(meter.headers())
            await send(message)

        try:
            meter.count_request()
        except RequestError as error:
            await error_response(error, path=scope["path"])(scope, receive, send_counted)
            return
        await self._app(scope, receive, send_counted)

    def _key(self, given: str) -> ApiKey:
        """Whose it is; raises Unauthorized."""
        news = self._ring.refresh()
        if news is not None:
            logger.warning("API keys: %s", news)
            self._meters = {key: meter for key, meter in self._meters.items() if key in self._ring.keys}
        key = find(self._ring.keys, given)
        if key is None:
            what = "is not known here" if given else "is missing"
            raise Unauthorized(
                f"the API key {what}: send it as `authorization: Bearer KEY` or `x-api-key: KEY`"
            )
        return key

    def _meter(self, key: ApiKey) -> Meter:
        if key not in self._meters:
            self._meters[key] = Meter(key.name, Quota.of(key, self._replicas), self._ring.clock)
        return self._meters[key]


def given_key(headers: Headers) -> str:
    """Empty: none. As a bearer, or where clients of Anthropic's API put it."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def tenant_of(scope: Scope) -> str:
    """The name of the API key, where keys are checked. Else a mark of what came as one, which itself goes no
    further; all without a key are one tenant.

    The `user` field makes no tenant: it costs nothing to change, so whoever changes it would overtake those
    who do not.
    """
    key = scope["state"].get(KEY)
    if key is not None:
        return str(key.name)
    given = given_key(Headers(scope=scope))
    return hashlib.sha256(given.encode("latin-1")).hexdigest()[:TENANT_CHARS] if given else ""


def _is_open(scope: Scope) -> bool:
    """/health?generate=1 is not: it computes."""
    return scope["type"] == "http" and scope["path"] in OPEN and not scope["query_string"]
