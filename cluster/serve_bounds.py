"""What Serve leaves open, closed inside its processes.

Clients' connections end at Serve's proxy, in front of every ingress; it calls `bounded` when it starts
(cluster/environment.py names it). Knows nothing of keys and requests: those are the ingress's own.

What is replaced here is private to Ray 2.60; tests/ray/test_security.py sees that it still takes.
"""

from __future__ import annotations

from ray.serve._private import replica
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from ingress.errors import NotFound, error_response

PATHS_OF_SERVE = "/-/"


def bounded() -> list[Middleware]:
    """From now on every server of this process bounds its connections; what is left is said per request."""
    HTTP_PROTOCOLS["auto"] = "ingress.connection:BoundedProtocol"
    return [Middleware(WithoutServesPaths)]


def without_grpc() -> None:
    """In an ingress's process: Serve would listen on every address, and unpickle what anybody sends there.

    It is for calls between deployments, of which we have one.
    """
    assert hasattr(replica, "add_port_to_grpc_server"), "Ray opens the port of its replicas in another way"
    replica.add_port_to_grpc_server = _no_port


def _no_port(*_: object) -> int:
    return 0


class WithoutServesPaths:
    """The proxy would tell everybody its routes and health; no key is asked for there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PATHS_OF_SERVE):
            await error_response(NotFound("nothing is served there"))(scope, receive, send)
            return
        await self._app(scope, receive, send)
