"""Network namespaces of Linux, entered from Python.

Knows nothing of hosts, nor of what travels.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def within(namespace: str, what: Callable[[], T]) -> T:
    """Call it with that namespace's network; threads that it starts have it, too."""
    result: list[Any] = []

    def enter() -> None:
        with Path("/run/netns", namespace).open("rb") as network:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(network.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            result.append((what(), None))
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            result.append((None, error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]


def open_tap(namespace: str, device: str) -> int:
    """A network device there whose frames a process reads and writes; it goes when the file is closed."""

    def make() -> int:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
        return file

    return within(namespace, make)
