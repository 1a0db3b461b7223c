"""Boards and alerts as files: what Grafana and Prometheus read at their start.

`shoal dashboards write DIR`. Knows nothing of what is on a board.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.alerts import AlertGroup
from cluster.boards import MARKS
from cluster.panels import Board, Mark, Panel

DATASOURCE = "shoal-prometheus"
SCHEMA_VERSION = 39  # of Grafana 10 and 11
COLUMNS, WIDTH, HEIGHT = 24, 12, 8
RUNBOOKS = "docs/operations.md"


def write(directory: Path, boards: Sequence[Board], alerts: AlertGroup, prometheus_url: str) -> list[Path]:
    """Everything under `directory`; the same input writes the same bytes. Returns what was written."""
    files = {
        **_board_files(boards),
        "provisioning/dashboards/shoal.yaml": _yaml(_provider(directory / "dashboards")),
        "provisioning/datasources/shoal.yaml": _yaml(_datasource(prometheus_url)),
        "prometheus/rules.yaml": _yaml(rules(alerts)),
    }
    return _write(directory, files)


def write_for_kubernetes(directory: Path, boards: Sequence[Board], alerts: AlertGroup) -> list[Path]:
    """What k8s/components/monitoring is made of: the boards, and the rules as the operator's resource."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "shoal"},
        "spec": rules(alerts),
    }
    return _write(directory, {**_board_files(boards), "rules.yaml": _yaml(rule)})


def board_json(board: Board) -> dict[str, Any]:
    """A board as Grafana imports it, two panels in a row."""
    return {
        "uid": board.uid,
        "title": board.title,
        "tags": ["shoal"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "annotations": {"list": [_drawn(mark) for mark in MARKS]},
        "panels": list(_placed(board.panels)),
    }


def rules(group: AlertGroup) -> dict[str, Any]:
    """Prometheus' rule file."""
    return {
        "groups": [
            {
                "name": group.name,
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": alert.expression,
                        "for": alert.lasts,
                        "labels": {"severity": alert.severity},
                        "annotations": {
                            "summary": alert.summary,
                            "runbook": f"{RUNBOOKS}#{alert.runbook}",
                        },
                    }
                    for alert in group.alerts
                ],
            }
        ]
    }


def _board_files(boards: Sequence[Board]) -> dict[str, str]:
    return {
        f"dashboards/{board.uid}.json": json.dumps(board_json(board), indent=1) + "\n" for board in boards
    }


def _write(directory: Path, files: dict[str, str]) -> list[Path]:
    written = []
    for name, text in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written.append(file)
    return written


def _drawn(mark: Mark) -> dict[str, Any]:
    return {
        "name": mark.name,
        "datasource": {"type": "prometheus", "uid": DATASOURCE},
        "enable": True,
        "iconColor": mark.color,
        "expr": f"{mark.expression} > 0",
        "titleFormat": mark.title,
        "step": "15s",
    }


def _placed(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    per_row = COLUMNS // WIDTH
    for number, panel in enumerate(panels):
        row, column = divmod(number, per_row)
        yield {
            "id": number + 1,
            "type": panel.kind,
            "title": panel.title,
            "datasource": {"type": "prometheus", "uid": DATASOURCE},
            "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {
                "defaults": {
                    "unit": panel.unit,
                    "min": 0,
                    "custom": {"stacking": {"mode": "normal"}} if panel.is_stacked else {},
                },
                "overrides": [],
            },
            "targets": [
                {"refId": chr(ord("A") + place), "expr": query.expression, "legendFormat": query.legend}
                for place, query in enumerate(panel.queries)
            ],
        }


def _provider(directory: Path) -> dict[str, Any]:
    options = {"path": str(directory.resolve())}
    return {
        "apiVersion": 1,
        "providers": [{"name": "shoal", "folder": "Shoal", "type": "file", "options": options}],
    }


def _datasource(url: str) -> dict[str, Any]:
    source = {"name": "Shoal", "uid": DATASOURCE, "type": "prometheus", "access": "proxy", "url": url}
    return {"apiVersion": 1, "datasources": [source]}


def _yaml(value: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, width=110)
    return text
