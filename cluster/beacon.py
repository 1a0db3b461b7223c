"""Where the cluster on this machine tells about itself.

`shoal serve` leaves its admin address and key in a file that only its user can read, so that `shoal top`
needs no arguments. Knows nothing of what is there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.spec import cache_directory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Beacon:
    """url: of the admin listener."""

    url: str
    key: str


@contextmanager
def lit(url: str, key: str) -> Iterator[None]:
    """The file of this process, while the block runs."""
    file = _directory() / f"{os.getpid()}.json"
    try:
        _write(file, json.dumps({"url": url, "key": key}))
    except OSError as error:  # a home that cannot be written to is no reason not to serve
        logger.warning("`shoal top` will want --url and --key: %s", error)
        yield
        return
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def newest() -> Beacon | None:
    """Of the cluster on this machine that was started last, by this user; None: there is none."""
    files = sorted(_directory().glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        if psutil.pid_exists(int(file.stem)):
            told = json.loads(file.read_text(encoding="utf-8"))
            return Beacon(url=told["url"], key=told["key"])
    return None


def _write(file: Path, text: str) -> None:
    """For this user's eyes only, from the first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # of a process that had this number and was killed
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)


def _directory() -> Path:
    return cache_directory() / "serving"
