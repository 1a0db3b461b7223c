"""Pushing to Grafana: what is missing is made in the order that it needs, what is right is left alone.

No Grafana could be installed where this was made: its stand-in refuses what Grafana would.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from cluster.boards import BOARDS
from cluster.cli import app
from tests.unit.grafana_server import TOKEN, Grafana, grafana

ALL = ["folder shoal", "data source shoal-prometheus", *(f"board {b.uid}" for b in BOARDS), "rules shoal"]


@pytest.fixture
def server() -> Iterator[tuple[str, Grafana]]:
    pytest.importorskip("grafana_client", reason="pip install 'grafana-client>=3.11,<4'")
    with grafana() as found:
        yield found
        assert not found[1].odd


def push(url: str, *flags: str, token: str = TOKEN) -> Result:
    return CliRunner().invoke(app, ["dashboards", "push", url, "--token", token, *flags])


def test_all_is_made_in_order_and_the_second_time_nothing(server: tuple[str, Grafana]) -> None:
    url, state = server
    first = push(url)
    assert first.exit_code == 0, first.stderr
    assert state.changes == ALL
    assert first.stderr.count(": created") == len(ALL)
    again = push(url)
    assert again.exit_code == 0 and again.stderr.count(": unchanged") == len(ALL)
    assert state.changes == ALL


def test_a_dry_run_says_the_same_and_does_nothing(server: tuple[str, Grafana]) -> None:
    url, state = server
    done = push(url, "--dry-run")
    assert done.exit_code == 0 and done.stderr.count(": would be created") == len(ALL)
    assert not state.changes


def test_only_what_somebody_changed_is_put_right_and_shown(server: tuple[str, Grafana]) -> None:
    url, state = server
    push(url)
    state.changes.clear()
    state.boards["shoal-experts"]["dashboard"]["panels"][0]["title"] = "mine"
    state.groups["shoal", "shoal"]["rules"][0]["for"] = "9h"
    state.folders["shoal"]["title"] = "Somebody's"
    state.sources["shoal-prometheus"]["url"] = "http://elsewhere:9090"
    shown = push(url, "--dry-run", "--diff").stderr
    assert '-   "title": "mine",' in shown and '-   "for": "9h",' in shown and not state.changes
    assert push(url).exit_code == 0
    assert state.changes == [
        "folder shoal",
        "data source shoal-prometheus",
        "board shoal-experts",
        "rules shoal",
    ]
    assert push(url, "--dry-run").stderr.count(": unchanged") == len(ALL)


def test_a_board_that_was_moved_is_brought_back(server: tuple[str, Grafana]) -> None:
    url, state = server
    push(url)
    state.changes.clear()
    state.boards["shoal-faults"]["meta"]["folderUid"] = "elsewhere"
    push(url)
    assert state.changes == ["board shoal-faults"]


def test_a_wrong_token_and_a_wrong_address_are_said_in_words(server: tuple[str, Grafana]) -> None:
    url, state = server
    wrong = push(url, token="wrong")
    assert wrong.exit_code == 1 and "GRAFANA_TOKEN" in wrong.stderr and not state.changes
    nobody = push("http://127.0.0.1:1")
    assert nobody.exit_code == 1 and "cannot be reached" in nobody.stderr


def test_without_the_client_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grafana_client", None)
    done = push("http://127.0.0.1:1")
    assert done.exit_code == 1 and "pip install" in done.stderr
