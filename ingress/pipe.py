"""Texts through a pipe, each with its length before it.

Between an ingress and its own helper, which read nobody else's bytes. Knows nothing of what the texts say.
"""

from __future__ import annotations

import struct
from typing import IO

LENGTH = struct.Struct("<I")


def write_text(sink: IO[bytes], text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    sink.write(LENGTH.pack(len(data)) + data)
    sink.flush()


def read_text(source: IO[bytes]) -> str | None:
    """None at the end."""
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    data = source.read(size)
    return data.decode("utf-8", "replace") if len(data) == size else None
