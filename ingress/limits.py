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
