"""Boards and alerts: of metrics that there are, all of them, in files that their readers take."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from actors.metrics import BY_NAME
from cluster.alerts import ALERTS
from cluster.boards import BOARDS, MARKS
from cluster.cli import app
from cluster.grafana import DATASOURCE, board_json

SUFFIXES = re.compile("_(bucket|sum|count)$")
QUERIES = [query for board in BOARDS for panel in board.panels for query in panel.queries]


def metrics_of(expression: str) -> set[str]:
    names = re.findall(r"\bshoal_[a-z_]+", expression)
    return {name if name in BY_NAME else SUFFIXES.sub("", name) for name in names}


def test_every_metric_is_on_a_board_and_every_board_shows_metrics_that_there_are() -> None:
    shown = set().union(*(metrics_of(query.expression) for query in QUERIES))
    assert shown == {name for name in BY_NAME if name.startswith("shoal_")}
    assert metrics_of(" ".join(alert.expression for alert in ALERTS.alerts)) <= BY_NAME.keys()


def test_legends_and_summaries_name_labels_that_the_expression_keeps() -> None:
    for query in QUERIES:
        kept = re.findall(r"by \(([a-z_, ]+)\)", query.expression)
        for label in re.findall(r"\{\{([a-z_]+)\}\}", query.legend):
            assert label in ("actor", "instance") or any(label in labels for labels in kept), query


def test_a_board_groups_by_labels_that_the_metric_or_the_discovery_has() -> None:
    for query in QUERIES:
        for by in re.findall(r"by \(([a-z_, ]+)\)", query.expression):
            own = (BY_NAME[metric].labels for metric in metrics_of(query.expression))
            labels = {"le", "actor"}.union(*own)
            assert set(by.split(", ")) <= labels, query


def test_boards_have_names_of_their_own_and_panels_do_not_overlap() -> None:
    assert len({board.uid for board in BOARDS}) == len({board.title for board in BOARDS}) == len(BOARDS)
    for board in BOARDS:
        drawn = board_json(board)
        assert drawn == json.loads(json.dumps(drawn))
        places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in drawn["panels"]]
        assert len(set(places)) == len(places) == len(board.panels)
        assert {p["datasource"]["uid"] for p in drawn["panels"]} == {DATASOURCE}
        marks = drawn["annotations"]["list"]
        assert [mark["expr"] for mark in marks] == [f"{mark.expression} > 0" for mark in MARKS]
        assert {mark["datasource"]["uid"] for mark in marks} == {DATASOURCE}


def test_every_alert_has_a_runbook() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = {line[3:].lower().replace(" ", "-") for line in page.splitlines() if line.startswith("## ")}
    sections = {"kubernetes", "several-hosts", "serve-on-a-gpu"}
    assert {alert.runbook for alert in ALERTS.alerts} == headings - sections
    assert len({alert.name for alert in ALERTS.alerts}) == len(ALERTS.alerts)


def test_the_command_writes_the_same_files_again(tmp_path: Path) -> None:
    first = CliRunner().invoke(app, ["dashboards", "write", str(tmp_path)])
    assert first.exit_code == 0, first.output
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    assert len(files) == len(BOARDS) + 3
    assert CliRunner().invoke(app, ["dashboards", "write", str(tmp_path)]).exit_code == 0
    assert {file: file.read_bytes() for file in files} == files
    source = yaml.safe_load((tmp_path / "provisioning/datasources/shoal.yaml").read_text(encoding="utf-8"))
    assert source["datasources"][0]["uid"] == DATASOURCE
    (tmp_path / "taken").write_text("")
    failed = CliRunner().invoke(app, ["dashboards", "write", str(tmp_path / "taken")])
    assert failed.exit_code == 1 and "cannot be written" in failed.stderr


def test_prometheus_can_read_every_expression(tmp_path: Path) -> None:
    """Whether there are series for it is asked of a live cluster, in tests/ray/test_prometheus.py."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    expressions = [query.expression for query in QUERIES] + [mark.expression for mark in MARKS]
    recorded = [{"record": f"r{number}", "expr": found} for number, found in enumerate(expressions)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(expressions)} rules found" in done.stdout


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    assert CliRunner().invoke(app, ["dashboards", "write", str(tmp_path)]).exit_code == 0
    done = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "prometheus" / "rules.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS.alerts)} rules found" in done.stdout
