"""A file system of its own for what Ray writes, small enough to be filled.

Knows nothing of what is written there.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = "256m"
PIECE = bytes(1 << 16)
HOME = "RAY_TMPDIR"  # read by ray.init


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """While the block runs, a Ray that starts writes to `directory`; only where this user may mount."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield
        return
    before = os.environ.get(HOME)
    os.environ[HOME] = str(directory)
    try:
        yield
    finally:
        os.environ.pop(HOME)
        if before is not None:
            os.environ[HOME] = before
        subprocess.run(["umount", "-l", str(directory)], capture_output=True, check=False)


@contextmanager
def filled(directory: Path) -> Iterator[None]:
    """Not a byte is free in its file system while the block runs; raises OSError if it is not a small one."""
    if not directory.is_mount():
        raise OSError(f"{directory} is no file system of its own: it is not filled")
    filling = directory / "filling"
    try:
        with filling.open("wb", buffering=0) as file:
            while True:
                file.write(PIECE)
    except OSError:  # no space is left
        yield
    finally:
        filling.unlink()
