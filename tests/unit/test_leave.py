"""A pod waits for its clients, nobody joins without a token, no other machine's process is hit."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from cluster import cli_leave
from cluster.cli import app
from cluster.environment import data_token, environment_for
from cluster.hosts import pid_here
from cluster.spec import ShoalSpec, SpecError


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_it_lingers_until_the_last_client_has_gone(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_leave, "LINGER_AT_LEAST_S", 0.0)
    monkeypatch.setattr(cli_leave, "LOOK_S", 0.01)
    port = listener.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = listener.accept()
    went: list[float] = []

    def leave() -> None:
        time.sleep(0.2)
        went.append(time.monotonic())
        client.close()
        accepted.close()

    thread = threading.Thread(target=leave)
    thread.start()
    done = CliRunner().invoke(app, ["linger", "--port", str(port)])
    assert went and time.monotonic() >= went[0], "not before"
    assert (done.exit_code, done.stderr) == (0, "")
    thread.join()


def test_it_says_whom_it_did_not_wait_for(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        accepted, _ = listener.accept()
        with accepted:
            done = CliRunner().invoke(app, ["linger", "--port", str(port), "--seconds", "0.1"])
    assert done.exit_code == 0 and "1 connections" in done.stderr and "0.1 s" in done.stderr


@pytest.mark.parametrize("command", [["stop"], ["serve", "--host", "127.0.0.1"]])
def test_nobody_joins_without_the_token(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(app, [*command, "--address", "127.0.0.1:1"])
    assert done.exit_code == 1 and "RAY_AUTH_TOKEN" in done.stderr


def test_bounds_that_the_nodes_of_the_cluster_do_not_keep_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    spec = ShoalSpec(address="127.0.0.1:1", host="127.0.0.1", max_connections=5)
    with (
        pytest.raises(SpecError, match=r"max_connections is 5.*SHOAL_CONNECTIONS='5 1024'"),
        environment_for(spec),
    ):
        pytest.fail("it was joined")


def test_the_data_plane_has_a_token_that_is_rays_only_to_those_who_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    first = data_token()
    assert data_token() == first and len(first) == 32 and b"a" * 8 not in first
    monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
    assert data_token() != first


def test_a_process_number_of_another_machine_is_nobodys() -> None:
    assert pid_here("127.0.0.1", os.getpid()) == os.getpid()
    assert pid_here("203.0.113.7", os.getpid()) is None
