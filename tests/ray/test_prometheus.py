"""A real Prometheus beside a live cluster: it finds whoever comes, and every expression has series."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.alerts import ALERTS
from cluster.boards import BOARDS, MARKS
from tests.ray.conftest import Served, free_port
from tests.ray.test_serving import complete, prompt
from tests.ray.test_watching import eventually, get

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
EXPRESSIONS = (
    *(query.expression for board in BOARDS for panel in board.panels for query in panel.queries),
    *(mark.expression for mark in MARKS),
    # An alert holds where something is wrong: what it compares must be there.
    *(re.split(" [=<>]+ ", alert.expression)[0] for alert in ALERTS.alerts),
)


@contextmanager
def prometheus(cluster: Served, directory: Path) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """A real one that scrapes the cluster; yields what answers a query."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (Debian package prometheus)")
    admin, port = cluster.ready["admin"], free_port()
    credentials = f"{{type: Bearer, credentials: {admin['key']}}}"
    config = directory / "prometheus.yml"
    discovery = f"url: '{admin['url']}/targets', refresh_interval: 1s, authorization: {credentials}"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: shoal\n"
        f"    authorization: {credentials}\n"
        f"    http_sd_configs: [{{{discovery}}}]\n"
    )
    places = [f"--config.file={config}", f"--storage.tsdb.path={directory}/data"]
    listen = [*places, f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen([binary, *listen], stderr=subprocess.DEVNULL)

    def query(expression: str) -> list[dict[str, Any]]:
        address = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            result: list[dict[str, Any]] = json.loads(get(address))["data"]["result"]
        except OSError:
            return []  # it has not begun to listen
        return result

    try:
        yield query
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def load(cluster: Served) -> Iterator[None]:
    """One request after another, some of whose prompts were there before."""
    stopping = threading.Event()

    def ask_on() -> None:
        while not stopping.is_set():
            complete(cluster.url, prompt(200))

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_prometheus_finds_who_comes_and_forgets_who_goes_and_finds_series_for_every_expression(
    cluster: Served, tmp_path: Path
) -> None:
    with prometheus(cluster, tmp_path) as query, load(cluster):

        def instances(actor: str) -> set[str]:
            return {found["metric"]["instance"] for found in query(f"up{{actor='{actor}'}} == 1")}

        eventually("all are up", lambda: len(query("up == 1")) == 5)
        [before] = instances("expert-1")
        cluster.admin("/actors/expert-1/kill", method="POST")
        eventually(
            "its next life is scraped in its place", lambda: len(instances("expert-1") - {before}) == 1
        )
        eventually("the life before is forgotten", lambda: len(query("up{actor='expert-1'}")) == 1)
        cluster.admin("/orders/scale", {"experts": 3})
        eventually("one more is scraped", lambda: len(instances("expert-2")) == 1)
        for expression in EXPRESSIONS:
            eventually(expression, lambda expression=expression: bool(query(expression)))
        cluster.admin("/orders/scale", {"experts": 2})
        eventually(
            "one less is asked", lambda: not query("up{actor='expert-2'}") and len(query("up == 1")) == 5
        )
        assert query("sum(shoal_actors{state='serves'})")[0]["value"][1] == "3"
        assert query("vllm:prompt_tokens_total")[0]["value"][1] != "0"
        tenants = query("shoal_tenant_requests_total")
        assert "(no key)" in {found["metric"]["tenant"] for found in tenants}
