"""The outermost layer: a name for every request.

Gives each request an id, shows it in `x-request-id`, answers in the error shape whatever nobody foresaw, and
counts the answers. Knows nothing of routes.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingress.errors import error_response, internal_error
from ingress.key_guard import tenant_of

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestGuard:
    """ASGI middleware; `scope["state"]["request_id"]` holds the id further in."""

    def __init__(self, app: ASGIApp, answered: Callable[[int, str | None], None]) -> None:
        """answered: told of each answer's status, and whose request it was if it was to be computed."""
        self._app, self._answered = app, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._answered(message["status"], _asker(scope, message["status"]))
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception:  # the last line: a fault of ours must not show its text to a client
            logger.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if not started:
                failed = error_response(internal_error(request_id), path=scope["path"])
                await failed(scope, receive, send_named)


def _asker(scope: Scope, status: int) -> str | None:
    """Whose request was to be computed; a stranger is no tenant."""
    is_known = scope["method"] == "POST" and status != HTTPStatus.UNAUTHORIZED
    return tenant_of(scope) if is_known else None


def _request_id(given: str | None) -> str:
    """The client's own id where it is a plain word, else a new one."""
    if given is not None and REQUEST_ID.fullmatch(given):
        return given
    return f"req-{secrets.token_hex(12)}"
