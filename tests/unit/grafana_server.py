"""A stand-in for Grafana that takes nothing it would not: every request is checked, whatever is odd is kept.

From Grafana's HTTP API (folders, data sources, dashboards, provisioned alert rules). Knows nothing of Shoal.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "glsa_for_tests"
PANELS = {"timeseries", "stat", "bargauge"}


class Refused(Exception):  # noqa: N818
    """What Grafana would answer instead."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Grafana:
    """Its state, and every change that was asked for."""

    def __init__(self) -> None:
        self.folders: dict[str, Any] = {}
        self.sources: dict[str, Any] = {}
        self.boards: dict[str, Any] = {}
        self.groups: dict[tuple[str, str], Any] = {}
        self.changes: list[str] = []
        self.odd: list[str] = []

    def answer(self, method: str, path: str, body: Any) -> Any:
        for pattern, handler in (
            (r"GET /api/folders/([\w-]+)", lambda uid: self._known(self.folders, uid)),
            (r"POST /api/folders", lambda: self._add_folder(body)),
            (r"PUT /api/folders/([\w-]+)", lambda uid: self._rename(uid, body)),
            (r"GET /api/datasources/uid/([\w-]+)", lambda uid: self._known(self.sources, uid)),
            (r"POST /api/datasources", lambda: self._put_source(body, is_new=True)),
            (r"PUT /api/datasources/uid/([\w-]+)", lambda uid: self._put_source(body, is_new=False)),
            (r"GET /api/dashboards/uid/([\w-]+)", lambda uid: self._known(self.boards, uid)),
            (r"POST /api/dashboards/db", lambda: self._put_board(body)),
            (
                r"GET /api/v1/provisioning/folder/([\w-]+)/rule-groups/([\w-]+)",
                lambda *key: self._known(self.groups, key),
            ),
            (
                r"PUT /api/v1/provisioning/folder/([\w-]+)/rule-groups/([\w-]+)",
                lambda *key: self._put_group(key, body),
            ),
        ):
            if found := re.fullmatch(pattern, f"{method} {path}"):
                return handler(*found.groups())
        self.odd.append(f"{method} {path}")
        raise Refused(404, "no such route")

    def _known(self, of: dict[Any, Any], key: Any) -> Any:
        if key not in of:
            raise Refused(404, "not found")
        return of[key]

    def _add_folder(self, body: Any) -> Any:
        self._exactly(body, {"title": str, "uid": str})
        if body["uid"] in self.folders:
            raise Refused(412, "a folder with that uid exists")
        self.changes.append(f"folder {body['uid']}")
        self.folders[body["uid"]] = {**body, "id": 1, "version": 1}
        return self.folders[body["uid"]]

    def _rename(self, uid: str, body: Any) -> Any:
        self._exactly(body, {"title": str, "overwrite": bool})
        self.changes.append(f"folder {uid}")
        self._known(self.folders, uid)["title"] = body["title"]
        return self.folders[uid]

    def _put_source(self, body: Any, *, is_new: bool) -> Any:
        self._exactly(body, {"name": str, "uid": str, "type": str, "access": str, "url": str})
        if body["access"] not in ("proxy", "direct") or not body["url"].startswith("http"):
            raise Refused(400, "bad data source")
        if (body["uid"] in self.sources) == is_new:
            raise Refused(409 if is_new else 404, "data source")
        self.changes.append(f"data source {body['uid']}")
        self.sources[body["uid"]] = {**body, "id": 7, "orgId": 1, "jsonData": {}, "readOnly": False}
        return {"datasource": self.sources[body["uid"]], "message": "done"}

    def _put_board(self, body: Any) -> Any:
        self._exactly(body, {"dashboard": dict, "folderUid": str, "overwrite": bool, "message": str})
        board = body["dashboard"]
        if body["folderUid"] not in self.folders:
            raise Refused(400, "folder not found")
        if "id" in board or "version" in board or not re.fullmatch(r"[\w-]{1,40}", board["uid"]):
            raise Refused(400, "bad uid, or an id of another Grafana")
        for panel in board["panels"]:
            if panel["datasource"]["uid"] not in self.sources or panel["type"] not in PANELS:
                raise Refused(400, f"panel {panel['id']}: data source or type unknown")
        self.changes.append(f"board {board['uid']}")
        stored = {**board, "id": len(self.boards) + 1, "version": 1}
        self.boards[board["uid"]] = {
            "dashboard": stored,
            "meta": {"folderUid": body["folderUid"], "slug": "x"},
        }
        return {"status": "success", "uid": board["uid"]}

    def _put_group(self, key: Any, body: Any) -> Any:
        self._exactly(body, {"title": str, "folderUid": str, "interval": int, "rules": list})
        if key[0] not in self.folders or (body["folderUid"], body["title"]) != key or body["interval"] % 10:
            raise Refused(400, "folder, title or interval")
        uids = set()
        for rule in body["rules"]:
            self._check_rule(rule, key)
            uids.add(rule["uid"])
        if len(uids) != len(body["rules"]):
            raise Refused(400, "two rules of one uid")
        self.changes.append(f"rules {key[1]}")
        rules = [
            {**rule, "id": number, "orgID": 1, "isPaused": False} for number, rule in enumerate(body["rules"])
        ]
        self.groups[key] = {**body, "rules": rules}
        return self.groups[key]

    def _check_rule(self, rule: Any, key: Any) -> None:
        if (rule["folderUID"], rule["ruleGroup"]) != key or not re.fullmatch(r"[\w-]{1,40}", rule["uid"]):
            raise Refused(400, "the rule is of another group")
        if not re.fullmatch(r"\d+[smh]", rule["for"]) or rule["noDataState"] not in (
            "OK",
            "NoData",
            "Alerting",
        ):
            raise Refused(400, "for or noDataState")
        known = {query["refId"]: query for query in rule["data"]}
        if rule["condition"] not in known:
            raise Refused(400, "the condition is no query")
        for query in rule["data"]:
            source, model = query["datasourceUid"], query["model"]
            if source == "__expr__":
                if model["type"] != "threshold" or model["expression"] not in known:
                    raise Refused(400, "expression")
            elif source not in self.sources or not model["expr"]:
                raise Refused(400, "query")

    @staticmethod
    def _exactly(body: Any, fields: dict[str, type]) -> None:
        if not isinstance(body, dict) or body.keys() != fields.keys():
            raise Refused(400, f"fields {sorted(body or ())}, expected {sorted(fields)}")
        for name, kind in fields.items():
            if type(body[name]) is not kind:
                raise Refused(400, f"{name} is no {kind.__name__}")


@contextmanager
def grafana() -> Iterator[tuple[str, Grafana]]:
    """Its address, and what it knows."""
    state = Grafana()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._do(None)

        def do_POST(self) -> None:
            self._do(self.rfile.read(int(self.headers["content-length"])))

        do_PUT = do_POST

        def _do(self, body: bytes | None) -> None:
            try:
                if self.headers["authorization"] != f"Bearer {TOKEN}":
                    raise Refused(401, "who are you?")
                if body is not None and self.headers["content-type"] != "application/json":
                    raise Refused(400, "not JSON")
                value = state.answer(self.command, self.path, None if body is None else json.loads(body))
                self._say(200, value)
            except Refused as refusal:
                self._say(refusal.code, {"message": str(refusal)})

        def _say(self, code: int, value: Any) -> None:
            text = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
