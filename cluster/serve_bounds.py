"""What Serve leaves open, closed inside its processes.

Clients' connections end at Serve's proxy, in front of every ingress; it calls `bounded` when it starts
(cluster/environment.py names it). Knows nothing of keys and requests: those are the ingress's own.

What is replaced here is private to Ray 2.60; tests/ray/test_security.py sees that it still takes.
"""

from __future__ import annotations

import re

from ray.serve._private import replica
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from cluster.spec import connection_limits
from ingress.connection import BoundedProtocol
from ingress.errors import NotFound, error_response

PATHS = "/-/"
HEADERS = frozenset((b"x-request-disconnect-disabled", b"serve_multiplexed_model_id"))
TIMEOUT = b"x-request-timeout-seconds"  # the client's own to set; but what is no number breaks the proxy
SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?")


def bounded() -> list[Middleware]:
    """From now on every server of this process bounds its connections; what is left is said per request."""
    HTTP_PROTOCOLS["auto"] = "ingress.connection:BoundedProtocol"
    BoundedProtocol.limits = connection_limits()
    return [Middleware(OursOnly)]


def without_grpc() -> None:
    """In an ingress's process: Serve would listen on every address, and unpickle what anybody sends there.

    It is for calls between deployments, of which we have one.
    """
    assert hasattr(replica, "add_port_to_grpc_server"), "Ray opens the port of its replicas in another way"
    replica.add_port_to_grpc_server = _no_port


def _no_port(*_: object) -> int:
    return 0


def _is_ours(name: bytes, value: bytes) -> bool:
    return name not in HEADERS and (name != TIMEOUT or SECONDS.fullmatch(value) is not None)


class OursOnly:
    """Serve's own paths, which want no key, do not exist; its headers, which steer the proxy, are dropped.

    With one of them a client could leave unnoticed, and its answer would be made to the end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"].startswith(PATHS):
                await error_response(NotFound("nothing is served there"))(scope, receive, send)
                return
            scope = {**scope, "headers": [each for each in scope["headers"] if _is_ours(*each)]}
        await self._app(scope, receive, send)
