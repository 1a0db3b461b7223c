"""What an operator sees of a live cluster: metrics of every process, the page, a death and its end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.alerts import ALERTS
from cluster.boards import BOARDS, MARKS
from tests.ray.browser import browser
from tests.ray.conftest import Served, free_port
from tests.ray.test_serving import complete, prompt

pytestmark = pytest.mark.ray
PATIENCE_S = 60.0
OWN = {
    "attention": "shoal_steps_total",
    "expert": "shoal_expert_rows_total",
    "ingress": "shoal_open_sequences",
}


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def deaths_of(cluster: Served, actor_id: str) -> int:
    [actor] = [actor for actor in cluster.admin("/snapshot")["actors"] if actor["actor_id"] == actor_id]
    return int(actor["deaths"])


def eventually(what: str, holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.3)


@pytest.fixture(scope="module", autouse=True)
def load(cluster: Served) -> None:
    """Something to see."""
    complete(cluster.url, prompt(200))


def test_every_process_tells_its_metrics_and_a_replaced_one_too(cluster: Served) -> None:
    eventually("four processes are told of", lambda: len(cluster.admin("/targets")) == 5)
    found = {t["labels"]["actor"]: (t["labels"]["role"], t["targets"][0]) for t in cluster.admin("/targets")}
    assert sorted(role for role, _ in found.values()) == [
        *("attention", "controller", "expert", "expert", "ingress")
    ]
    for role, address in found.values():
        if role != "controller":
            assert re.search(rf"^{OWN[role]} [0-9.e+]+$", get(f"http://{address}/metrics"), re.M), role
    deaths = deaths_of(cluster, "expert-1")
    assert cluster.admin("/actors/expert-1/kill", method="POST") == {"killed": "expert-1"}
    assert complete(cluster.url, prompt(40, seed=1))["finish_reason"] == "length"

    def is_replaced() -> bool:
        now = {t["labels"]["actor"]: t["targets"][0] for t in cluster.admin("/targets")}
        return now.get("expert-1", found["expert-1"][1]) != found["expert-1"][1]

    eventually("the new life is told of", is_replaced)
    seen = cluster.admin("/snapshot")
    [killed] = [actor for actor in seen["actors"] if actor["actor_id"] == "expert-1"]
    assert killed["deaths"] == deaths + 1 and killed["recovery_s"] > 0
    assert any("expert-1" in event["text"] for event in seen["events"])
    [pairs] = [actor["expert_pairs"] for actor in seen["actors"] if actor["kind"] == "attention"]
    assert min(map(sum, pairs)) > 0


def test_the_page_draws_load_holders_and_steps_in_a_real_browser(cluster: Served, tmp_path: Path) -> None:
    admin = cluster.ready["admin"]
    with browser(tmp_path, free_port()) as page:
        page.open(f"{admin['url']}/ui#{admin['key']}")
        text = lambda name: page.run(f"document.getElementById('{name}')?.innerText")  # noqa: E731
        eventually("it serves", lambda: text("state") == "all serve")
        assert text("actors").count("serves") == 3
        assert page.run("[at('heat').width, at('map').width, at('map').height]") == [32, 32, 2]
        stopping = threading.Event()

        def ask_on() -> None:
            while not stopping.is_set():
                complete(cluster.url, prompt(60))

        thread = threading.Thread(target=ask_on)
        thread.start()
        try:
            eventually("the load is seen", lambda: page.run("Number(at('heat').dataset.peak)") > 0)
            page.run("record()")
        finally:
            stopping.set()
            thread.join()
        assert int(page.run("at('steps').dataset.spans")) > 0
        assert {"attention-0", "expert-0", "expert-1"} <= set(page.run("lanes.map(l => l.split(', ')[0])"))
        assert page.run("journey.length") > 0, "one request at a time: its tokens' experts are told"
        page.run("play(true)")
        assert int(page.run("at('heat').dataset.lit")) > 0
        assert page.complaints == []


def test_the_command_writes_a_timeline_of_a_live_cluster(cluster: Served, tmp_path: Path) -> None:
    file, admin = tmp_path / "trace.json", cluster.ready["admin"]
    at = ["--url", admin["url"], "--key", admin["key"]]
    command = [sys.executable, "-m", "cluster.cli", "trace", str(file), "--seconds", "8", "--steps", "3", *at]
    recording = subprocess.Popen(command)
    while recording.poll() is None:
        complete(cluster.url, prompt(30))
    assert recording.returncode == 0
    events = json.loads(file.read_text())["traceEvents"]
    actors = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert {actors[e["pid"]] for e in events if e["name"] == "experts"} == {"expert-0", "expert-1"}
    steps = {
        e["args"]["step"] for e in events if e["name"] == "rows away" and actors[e["pid"]] == "attention-0"
    }
    assert steps == {1, 2, 3}


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


def test_a_real_prometheus_scrapes_all_of_it(cluster: Served, tmp_path: Path) -> None:
    with prometheus(cluster, tmp_path) as query:
        eventually("all are up", lambda: len(query("up == 1")) == 5)
        complete(cluster.url, prompt(60, seed=2))
        eventually("the experts' load is told", lambda: len(query("shoal_expert_imbalance >= 1")) > 0)
        assert query("sum(shoal_actors{state='serves'})")[0]["value"][1] == "3"
        complete(cluster.url, prompt(200))  # found in the prefix cache
        expressions = [q.expression for board in BOARDS for panel in board.panels for q in panel.queries]
        expressions += [mark.expression for mark in MARKS]
        # An alert holds where something is wrong: what it compares must be there.
        expressions += [re.split(" [=<>]+ ", alert.expression)[0] for alert in ALERTS.alerts]
        for expression in expressions:
            eventually(expression, lambda expression=expression: bool(query(expression)))
        assert query("vllm:prompt_tokens_total")[0]["value"][1] != "0"
