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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import IO

import psutil

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
SETTLE_S = 1.0  # heartbeats and polls that were due while suspended
COMMAND = "shoal"


class ServerError(RuntimeError):
    """The command ended or stayed silent before it served; the text holds its last words."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that has been ready, suspended outside of `awake`."""

    url: str
    pid: int

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
def serving(checkpoint: Path, flags: Sequence[str]) -> Iterator[Server]:
    """A server, suspended; it is ended with SIGTERM when the block ends."""
    command = [str(_command()), "serve", str(checkpoint), *flags, "--port", str(free_port()), "--json"]
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True)
        server = Server("", process.pid)
        try:
            server = Server(_await_ready(process, words), process.pid)
            server.signal(signal.SIGSTOP)
            yield server
        finally:
            server.signal(signal.SIGCONT)
            _end(process)


def _command() -> Path:
    found = Path(sys.executable).with_name(COMMAND)
    if not found.exists():
        raise ServerError(f"there is no {COMMAND} command beside this Python; run `make setup` first")
    return found


def _await_ready(process: subprocess.Popen[str], words: IO[str]) -> str:
    assert process.stdout is not None, "started with a pipe"
    readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
    line = process.stdout.readline() if readable else ""
    if not line:
        words.seek(0)
        raise ServerError(f"{COMMAND} serve did not become ready: {' '.join(words.read().split())[-600:]}")
    url: str = json.loads(line)["url"]
    return url


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
