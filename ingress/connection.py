"""One client's connection, bounded in every direction.

How many there are, how long the head of a request may be and may take, how long a client may refuse to
read. Below ASGI, where no application could see it: any server of this project listens with this class.
Knows nothing of what is asked.

uvicorn has no such limits of its own; this is its own protocol with a watch beside it.
"""

from __future__ import annotations

import json
from asyncio import TimerHandle, Transport
from collections import Counter
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ingress.errors import (
    HeadTooLarge,
    InvalidRequest,
    Overloaded,
    RequestError,
    RequestTimeout,
    error_fields,
)
from ingress.limits import ConnectionLimits

RETRY_S = 1.0
LINGER_S = 2.0  # for a refused client to read why


class BoundedProtocol(HttpToolsProtocol):
    """`limits` is of the class: uvicorn makes the instances."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._address = ""
        # Beside uvicorn's own set of connections: of this server, not of the process.
        self._open: Counter[str] = vars(self.server_state).setdefault("addresses", Counter())
        self._head_timer: TimerHandle | None = None
        self._unread_timer: TimerHandle | None = None
        self._head_bytes = 0
        self._in_body = False
        self._fault: RequestError | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self._open[self._address] += 1
        if len(self.connections) > self.limits.connections:
            self._refuse(Overloaded("too many connections are open", retry_after_s=RETRY_S))
        elif self._open[self._address] > self.limits.per_address:
            refused = Overloaded(
                "too many connections are open from this address", retry_after_s=RETRY_S, status=429
            )
            self._refuse(refused)
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        self._open[self._address] -= 1
        if not self._open[self._address]:
            del self._open[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # of a client that was refused
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            if self._in_body:  # of a request that was answered before its end: let it come, but not for ever
                self._head_timer = self.loop.call_later(self.limits.head_read_s, self.transport.abort)
            else:
                self._await_head()
        if not self._in_body:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_body and self._head_bytes > self.limits.head_bytes:
            self._refuse(self._too_large())

    def on_headers_complete(self) -> None:
        self._cancel_head_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.head_bytes or len(self.headers) > self.limits.headers:
            self._fault = self._too_large()
            raise self._fault  # the parser stops, and asks for send_400_response
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        self._head_bytes = 0  # from here on those of the next head, which may come before this answer
        self._cancel_head_timer()
        super().on_message_complete()

    def _should_upgrade_to_ws(self) -> bool:
        """There is nothing here that speaks anything else."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        pass  # a client's wish is no event of ours

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._fault or InvalidRequest("this is not HTTP", code="invalid_http"))

    def pause_writing(self) -> None:
        """What was sent lies unread."""
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(self.limits.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_read_s, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        seconds = self.limits.head_read_s
        self._refuse(RequestTimeout(f"the head of the request did not arrive within {seconds:g} s"))

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_timers(self) -> None:
        self._cancel_head_timer()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _too_large(self) -> HeadTooLarge:
        most = self.limits
        return HeadTooLarge(
            f"the head of the request is over {most.head_bytes} bytes or {most.headers} headers"
        )

    def _refuse(self, error: RequestError) -> None:
        """Answer in our shape and close; who does not read the answer is cut all the same."""
        self._stop_timers()
        if self.transport.is_closing():
            return
        if not self._is_answering:
            self.transport.write(_response(error))
        self.transport.close()
        self.loop.call_later(LINGER_S, self.transport.abort)

    @property
    def _is_answering(self) -> bool:
        """Whether what is written now would get into another answer: `cycle` is the newest request's, those
        in the pipeline wait for one before them.
        """
        cycle = self.cycle
        is_open = cycle is not None and cycle.response_started and not cycle.response_complete
        return is_open or bool(self.pipeline)


def _response(error: RequestError) -> bytes:
    body = json.dumps(error_fields(error)).encode()
    headers = {
        **error.headers,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    return STATUS_LINE[error.http_status] + lines + b"\r\n" + body
