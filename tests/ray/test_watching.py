"""What an operator sees of a live cluster: metrics of every process, the page, a death and its end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ray.browser import browser
from tests.ray.conftest import Served, free_port
from tests.ray.test_serving import complete, prompt

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
PATIENCE_S = 180.0  # of a machine that others use as well
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
    assert cluster.admin("/actors/expert-1/kill", method="POST")["killed"] == "expert-1"
    assert complete(cluster.url, prompt(40, seed=1))["finish_reason"] == "length"

    def is_replaced() -> bool:
        now = {t["labels"]["actor"]: t["targets"][0] for t in cluster.admin("/targets")}
        return now.get("expert-1", found["expert-1"][1]) != found["expert-1"][1]

    eventually("the new life is told of", is_replaced)
    seen = cluster.admin("/snapshot")
    [killed] = [actor for actor in seen["actors"] if actor["actor_id"] == "expert-1"]
    assert killed["deaths"] == deaths + 1 and killed["recovery_s"] > 0
    assert 0 < killed["detection_s"] < 5
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
        page.run("play(false)")
        page.run("at('prompt').value = 'Shoal'; tryIt(); 0")
        eventually("a stream of the page's own", lambda: "pieces" in text("tried"))
        for _ in ("kill", "really?"):
            page.run("document.querySelector('#plugs [data-actor=expert-0]').click()")
        eventually("it is noticed and mended", lambda: "serves again after" in text("killed"))
        figures = os.environ.get("SHOAL_FIGURES")  # where the README's picture is to be
        page.run("scrollTo(0, 0)")
        page.picture(Path(figures or tmp_path) / "live.png", high=1240)
        eventually("the same text again", lambda: "the same text" in text("tried"))
        assert "expert-0" in text("events") and text("requests").count("cmpl-") == 0
        eventually("the requests are told", lambda: "attention-0" in text("requests"))
        assert {url.split("/")[2] for url in page.asked if url.startswith("http")} == {
            admin["url"].split("/")[2]
        }
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
