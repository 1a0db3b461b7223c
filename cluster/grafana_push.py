"""Folder, data source, boards and alert rules of a running Grafana, made as they should be.

What is there is compared first: what is right is left alone, so that a second push changes nothing. Knows
nothing of what is on a board, nor of how a result is shown.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.alerts import Alert, AlertGroup
from cluster.grafana import DATASOURCE, RUNBOOKS, board_json
from cluster.panels import Board

FOLDER = "shoal"
MESSAGE = "shoal dashboards push"
GROUP_INTERVAL_S = 10
LOOK_BACK_S = 600
TIMEOUT_S = 20.0
NOT_FOUND = 404
REMEDY = "`shoal dashboards push` needs grafana-client: pip install 'grafana-client>=3.11,<4'"


class PushError(Exception):
    """Grafana could not be made so; the text says what it answered and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One thing, and what it lacked: action is created, updated or unchanged; diff is empty if unchanged."""

    kind: str
    name: str
    action: str
    diff: str


@dataclass(frozen=True, slots=True)
class _Item:
    """wanted: as it should be; nothing else that Grafana tells of it matters."""

    kind: str
    name: str
    wanted: Mapping[str, Any]
    get: Callable[[], Mapping[str, Any]]
    create: Callable[[], Any]
    update: Callable[[], Any]


def push(
    url: str,
    token: str,
    boards: Sequence[Board],
    alerts: AlertGroup,
    prometheus_url: str,
    *,
    is_dry_run: bool = False,
) -> Iterator[Change]:
    """Each thing as it is done, or would be. Raises PushError."""
    try:
        from grafana_client import GrafanaApi
        from grafana_client.client import GrafanaException, TokenAuth
    except ImportError:
        raise PushError(REMEDY) from None
    api = GrafanaApi.from_url(url, credential=TokenAuth(token), timeout=TIMEOUT_S)
    items = [
        _folder(api),
        _source(api, prometheus_url),
        *(_board(api, b) for b in boards),
        _rules(api, alerts),
    ]
    for item in items:
        try:
            yield _made_so(item, is_dry_run=is_dry_run)
        except GrafanaException as error:
            raise PushError(_explain(url, item, error)) from None
        except OSError as error:  # requests' own errors are such
            raise PushError(f"{url} cannot be reached: {' '.join(str(error).split())[:200]}") from None


def _made_so(item: _Item, *, is_dry_run: bool) -> Change:
    from grafana_client.client import GrafanaClientError

    try:
        found = item.get()
    except GrafanaClientError as error:
        if error.status_code != NOT_FOUND:
            raise
        found = None
    now = {} if found is None else {name: found.get(name) for name in item.wanted}
    if now == item.wanted:
        return Change(kind=item.kind, name=item.name, action="unchanged", diff="")
    if not is_dry_run:
        (item.create if found is None else item.update)()
    action = "created" if found is None else "updated"
    return Change(kind=item.kind, name=item.name, action=action, diff=_diff(now, item.wanted))


def _folder(api: Any) -> _Item:
    return _Item(
        "folder",
        FOLDER,
        {"title": "Shoal"},
        lambda: api.folder.get_folder(FOLDER),
        lambda: api.folder.create_folder("Shoal", uid=FOLDER),
        lambda: api.folder.update_folder(FOLDER, title="Shoal", overwrite=True),
    )


def _source(api: Any, prometheus_url: str) -> _Item:
    wanted = {
        "name": "Shoal",
        "uid": DATASOURCE,
        "type": "prometheus",
        "access": "proxy",
        "url": prometheus_url,
    }
    return _Item(
        "data source",
        DATASOURCE,
        wanted,
        lambda: api.datasource.get_datasource_by_uid(DATASOURCE),
        lambda: api.datasource.create_datasource(wanted),
        lambda: api.datasource.update_datasource_by_uid(DATASOURCE, wanted),
    )


def _board(api: Any, board: Board) -> _Item:
    wanted = board_json(board)
    order = {"dashboard": wanted, "folderUid": FOLDER, "overwrite": True, "message": MESSAGE}

    def found() -> Mapping[str, Any]:
        shown = api.dashboard.get_dashboard(board.uid)
        return {**shown["dashboard"], "in": shown["meta"].get("folderUid")}

    def write() -> None:
        api.dashboard.update_dashboard(order)

    return _Item("board", board.uid, {**wanted, "in": FOLDER}, found, write, write)


def _rules(api: Any, alerts: AlertGroup) -> _Item:
    rules = [_rule(alerts.name, alert) for alert in alerts.alerts]
    wanted = {"title": alerts.name, "folderUid": FOLDER, "interval": GROUP_INTERVAL_S, "rules": rules}

    def found() -> Mapping[str, Any]:
        group = api.alertingprovisioning.get_rule_group(FOLDER, alerts.name)
        known = [{name: rule.get(name) for name in rules[0]} for rule in group["rules"]]
        return {**group, "rules": known}

    def write() -> None:
        api.alertingprovisioning.update_rule_group(FOLDER, alerts.name, wanted, disable_provenance=True)

    return _Item("alert rules", alerts.name, wanted, found, write, write)


def _rule(group: str, alert: Alert) -> dict[str, Any]:
    """A rule as Grafana evaluates it: its expression tells of nobody while all is well.

    So whatever comes back fires, a zero too: `up == 0` has that value when it holds.
    """
    query = {"refId": "A", "expr": alert.expression, "instant": True}
    fires = {
        "refId": "B",
        "type": "threshold",
        "expression": "A",
        "conditions": [{"evaluator": {"type": "gt", "params": [-1]}}],
    }
    span = {"from": LOOK_BACK_S, "to": 0}
    return {
        "uid": alert.name.lower(),
        "title": alert.name,
        "ruleGroup": group,
        "folderUID": FOLDER,
        "condition": "B",
        "data": [
            {"refId": "A", "datasourceUid": DATASOURCE, "relativeTimeRange": span, "model": query},
            {"refId": "B", "datasourceUid": "__expr__", "relativeTimeRange": span, "model": fires},
        ],
        "noDataState": "OK",
        "execErrState": "Error",
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": f"{RUNBOOKS}#{alert.runbook}"},
    }


def _diff(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    before, after = (json.dumps(value, indent=1, sort_keys=True).splitlines() for value in (now, wanted))
    return "\n".join(difflib.unified_diff(before, after, "there", "wanted", lineterm="", n=1))


def _explain(url: str, item: _Item, error: Any) -> str:
    code = getattr(error, "status_code", "?")
    what = f"{url} answers HTTP {code} for {item.kind} {item.name}"
    if code in (401, 403):
        return f"{what}: give a service account's token with the role Admin (--token or GRAFANA_TOKEN)"
    return f"{what}: {' '.join(str(error).split())[:200]}"
