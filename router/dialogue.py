"""One speaks, the other answers: frames that are waited for.

On a connection of one's own, so that nobody else waits. Knows nothing of what is said.
"""

from __future__ import annotations

import select
import time
from typing import TypeVar

from router.connection import Connection
from router.heartbeat import Beat
from router.wire import BadFrame, Bytes, Message

M = TypeVar("M", bound=Message)


def say(connection: Connection, message: Message, *payload: Bytes, patience_s: float) -> None:
    """Returns when the kernel has all of it. Raises PeerLost or TimeoutError."""
    deadline_s = time.monotonic() + patience_s
    connection.send(message, *payload)
    while connection.wants_write:
        _wait(connection, select.POLLOUT, deadline_s, patience_s)
        connection.flush()


def hear(connection: Connection, kind: type[M], *, patience_s: float) -> tuple[M, memoryview]:
    """The next message and its payload, beats left out. Raises PeerLost, WireError or TimeoutError."""
    deadline_s = time.monotonic() + patience_s
    while True:
        for frame in connection.receive():
            if isinstance(frame.message, kind):
                return frame.message, frame.payload
            if not isinstance(frame.message, Beat):
                raise BadFrame(f"{frame.message.KIND} came for {kind.KIND}")
        _wait(connection, select.POLLIN, deadline_s, patience_s)


def _wait(connection: Connection, event: int, deadline_s: float, patience_s: float) -> None:
    """Until it is so; raises TimeoutError."""
    poll = select.poll()
    poll.register(connection, event)
    left_s = deadline_s - time.monotonic()
    if left_s <= 0 or not poll.poll(1000 * left_s):
        raise TimeoutError(f"not within {patience_s:g} s")
