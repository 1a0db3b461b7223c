"""A real cluster, started the way a user starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.embedded import embedded_directory
from cluster.random_model import write_checkpoint

START_TIMEOUT_S = 240
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Served:
    """A `shoal serve` process and what it said when it was ready."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    checkpoint: Path

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def admin(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """What its admin listener answers; raises OSError."""
        place = self.ready["admin"]
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(place["url"] + path, data=data, method=method)
        request.add_header("authorization", f"Bearer {place['key']}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def pid_of(self, actor_id: str) -> int:
        """The process id that the actor has now, once it serves."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for actor in self.admin("/snapshot")["actors"]:
                if actor["actor_id"] == actor_id and actor["pid"]:
                    return int(actor["pid"])
            time.sleep(0.2)
        raise AssertionError(f"{actor_id} does not serve")

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(checkpoint: Path, *flags: str) -> Iterator[Served]:
    """A server of `checkpoint`; of the embedded one, the command must find it without being told."""
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "serve",
        *([] if checkpoint == embedded_directory() else [str(checkpoint)]),
        "--port",
        str(free_port()),
        "--json",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    process = subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, f"no ready line; stderr: {process.stderr.read()}"
        yield Served(process, json.loads(line), checkpoint)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait(10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who shares `cluster`, which lives to the end, comes last: no other starts beside it."""
    items.sort(key=lambda item: item.path.parent == HERE and "cluster" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served") / "tiny-v32"
    write_checkpoint(directory, "test", seed=7)
    return directory


@pytest.fixture(scope="session")
def cluster(checkpoint: Path) -> Iterator[Served]:
    """One attention actor, two expert actors, one copy of each expert: for every file that leaves them so."""
    with served(checkpoint, "--attention", "1", "--experts", "2") as running:
        yield running
