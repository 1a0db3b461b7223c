"""How much one client may ask of a door.

Knows nothing of what the requests mean: sizes and times only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """body_bytes: longest request body. body_read_s: time to send it. open_sequences: most at work here.

    max_queue_s: how long an interactive request may wait to begin. keep_alive_s: how long a stream may be
    silent before it says so. send_s: how long a client may refuse to read. inline_bytes: larger bodies are
    parsed and tokenised on a thread, so that no other stream waits for them.
    """

    body_bytes: int = 1 << 20
    body_read_s: float = 10.0
    open_sequences: int = 4096
    keep_alive_s: float = 10.0
    send_s: float = 60.0
    max_queue_s: float = 60.0
    inline_bytes: int = 8192

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"limit {name} is {getattr(self, name)}: must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionLimits:
    """connections: open at once, and per_address: of one client address.

    head_bytes, headers: of one request, its URL included. head_read_s: from the opening of a connection, or
    the first byte after an answer, to the end of the head. unread_s: how long a client may leave what is
    sent to it unread, when the buffer is full.
    """

    connections: int = 4096
    per_address: int = 1024
    head_bytes: int = 16384
    headers: int = 100
    head_read_s: float = 10.0
    unread_s: float = 60.0
