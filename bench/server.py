"""`shoal serve` as a user starts it.

A subprocess of the real command, until the block ends. It is suspended between its turns, because an idle Ray
takes a seventh of a core, which would be missing to whoever is measured. Knows nothing of load.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import IO, Any

import psutil

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
SETTLE_S = 1.0  # heartbeats and polls that were due while suspended
COMMAND = (sys.executable, "-m", "cluster.cli")  # what `shoal` runs


class ServerError(RuntimeError):
    """The command ended or stayed silent before it served; the text holds its last words."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that has been ready, suspended outside of `awake`. ready: what it said then."""

    url: str
    pid: int
    ready: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for the block."""
        self.signal(signal.SIGCONT)
        try:
            sleep(SETTLE_S)
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        """To its process and all below."""
        try:
            process = psutil.Process(self.pid)
            everyone = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for one in everyone:
            try:
                one.send_signal(number)
            except psutil.NoSuchProcess:
                continue


@contextmanager
def serving(
    checkpoint: Path | str,
    flags: Sequence[str],
    *,
    patience_s: float = START_TIMEOUT_S,
    words: IO[str] | None = None,
) -> Iterator[Server]:
    """A server, suspended, that is ended with SIGTERM with the block. words: where it writes what it says."""
    command = [*COMMAND, "serve", str(checkpoint), *flags, "--port", str(free_port()), "--json"]
    with words or tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True)
        server = Server("", process.pid)
        try:
            ready = _await_ready(process, words, patience_s)
            server = Server(ready["url"], process.pid, ready)
            server.signal(signal.SIGSTOP)
            yield server
        finally:
            server.signal(signal.SIGCONT)
            _end(process)


def _await_ready(process: subprocess.Popen[str], words: IO[str], patience_s: float) -> dict[str, Any]:
    """The line that says where everything is."""
    assert process.stdout is not None, "started with a pipe"
    readable, _, _ = select.select([process.stdout], [], [], patience_s)
    line = process.stdout.readline() if readable else ""
    if not line:
        words.seek(0)
        raise ServerError(f"`shoal serve` did not become ready: {' '.join(words.read().split())[-600:]}")
    ready: dict[str, Any] = json.loads(line)
    return ready


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        if process.stdout is not None:
            process.stdout.close()


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
