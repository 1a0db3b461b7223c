"""The live page in a real browser, of a cluster that is played: without data, in the dark, by keyboard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.admin import AdminServer
from tests.ray.browser import Page, browser
from tests.ray.conftest import free_port
from tests.unit.app_server import MODEL, app_server
from tests.unit.test_admin import KEY, Still, actor

pytestmark = pytest.mark.ray
PATIENCE_S = 30.0
AUDIT = Path(__file__).with_name("accessibility.js").read_text(encoding="utf-8")
LAYERS, EXPERTS = 6, 32
STATE = "document.getElementById('state')?.textContent"
COMEBACK_S = 2.5


class Played(Still):
    """Load that grows look by look, and an actor that comes back some time after it is killed."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self.model = url, MODEL
        self.has_data = False
        self._killed_s: float | None = None

    def kill(self, actor_id: str) -> bool:
        self.killed.append(actor_id)
        self._killed_s = time.monotonic()
        return True

    def snapshot(self) -> dict[str, Any]:
        now_s = time.monotonic()
        seen: dict[str, Any] = {
            "at_s": now_s,
            "model": self.model,
            "url": self._url,
            "epoch": 3,
            "ready": True,
            "settled": True,
            "balance": {"before": 1.5, "after": 1.1, "slots_written": 7},
            "decisions": [],
            "actors": [],
            "ingresses": [],
            "requests": [],
            "events": [],
            "experts": {"first_layer": 1, "held": {}},
        }
        if not self.has_data:
            return seen
        pairs = [
            [int(10 * now_s * (1 + (expert * layer) % 7)) for expert in range(EXPERTS)]
            for layer in range(1, LAYERS + 1)
        ]
        seen["actors"] = [
            {
                **actor("attention-0", "attention", decode_tokens=90 * now_s, running=2.0),
                "expert_pairs": pairs,
            },
            *(actor(f"expert-{number}", "expert", pairs=500 * now_s) for number in range(2)),
        ]
        seen["experts"]["held"] = {"expert-0": [f"{0xFFFF:x}"], "expert-1": [f"{0xFFFF8000:x}"]}
        seen["requests"] = [
            {
                "id": f"cmpl-{number:032x}-0",
                "tenant": "ann",
                "prompt_tokens": 64,
                "finish": "length",
                "generated_tokens": 200,
                "actors": ["attention-0"],
                "queue_s": 0.004,
                "experts_s": 0.7,
                "first_token_s": 0.05 + number / 100,
                "whole_s": 2.5,
                "ingress": "ingress-ab",
            }
            for number in range(60)
        ]
        if self._killed_s is not None:
            happened = {0.02: "died (incarnation 1)", COMEBACK_S: "serves (incarnation 2)"}
            seen["events"] = [
                {"at_s": self._killed_s + after_s, "text": f"{self.killed[-1]} {what}"}
                for after_s, what in happened.items()
                if now_s > self._killed_s + after_s
            ]
        return seen


def eventually(what: str, holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Played, Any]]:
    with app_server(tmp_path_factory.mktemp("tokenizer")) as served:
        played = Played(str(served.http.base_url).rstrip("/"))
        server = AdminServer(played, "127.0.0.1", 0, KEY)
        try:
            with browser(tmp_path_factory.mktemp("profile"), free_port()) as page:
                page.resize(1280, 1500)
                page.open(f"{server.url}/ui#{KEY}")
                eventually("it is there", lambda: page.run(STATE) == "all serve")
                yield page, played, served
                assert page.complaints == []
                assert {url.split("/")[2] for url in page.asked if url.startswith("http")} == {
                    f"127.0.0.1:{server.port}"
                }, "no request leaves the origin"
        finally:
            server.close()


def text(page: Page, name: str) -> str:
    return str(page.run(f"at('{name}').textContent"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("has_data", [False, True])
def test_it_is_for_everybody_with_and_without_data_by_day_and_night(
    opened: tuple[Page, Played, Any], tmp_path: Path, scheme: str, has_data: bool
) -> None:
    page, played, _ = opened
    played.has_data = has_data
    page.prefer(scheme)
    if has_data:
        eventually("the load is drawn", lambda: page.run("Number(at('heat').dataset.peak || 0)") > 1)
        assert text(page, "first-token").startswith("350 ms (p95 ")
        assert page.run("at('requests').rows.length") == 50
    else:
        assert "no load yet" in text(page, "cell") and "none yet" in text(page, "requests")
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.run(AUDIT) == []
    page.run("document.querySelectorAll('details').forEach(d => d.open = false)")
    page.picture(tmp_path / f"{scheme}-{has_data}.png", high=1500)


def test_a_stream_and_a_kill_beside_it_by_keyboard_alone(
    opened: tuple[Page, Played, Any], tmp_path: Path
) -> None:
    page, played, served = opened
    played.has_data = True
    eventually(
        "there is somebody to kill",
        lambda: page.run("document.querySelectorAll('#plugs button').length") == 3,
    )
    for loopback in served.actors:
        loopback.pause_s = 0.03
    page.run("at('prompt').focus()")
    page.press("Tab")
    assert page.run("document.activeElement.id") == "ask"
    page.press("Enter", "\r")
    eventually("tokens come", lambda: "pieces" in text(page, "tried"))
    page.run("document.querySelector('#plugs [data-actor=expert-1]').focus()")
    page.press("Enter", "\r")
    assert played.killed == [], "once is not enough"
    assert page.run("document.activeElement.textContent") == "really?"
    page.press("Enter", "\r")
    eventually("it is killed", lambda: played.killed == ["expert-1"])
    eventually("it is noticed", lambda: "expert-1 killed: noticed after " in text(page, "killed"))
    eventually("it is back", lambda: f"serves again after {COMEBACK_S:.1f}" in text(page, "killed"))
    page.picture(tmp_path / "stream.png", high=1500)
    for loopback in served.actors:
        loopback.pause_s = 0.0
    eventually("asked again, the same", lambda: "asked again: the same text" in text(page, "tried"))
    assert "200 pieces" in text(page, "tried")
    assert "serves (incarnation 2)" in text(page, "events")
    page.run("at('heat').focus()")
    page.press("ArrowRight")
    page.press("ArrowDown")
    assert "layer 2, expert 0" in text(page, "cell") and "held by expert-0" in text(page, "cell")
    assert page.run(AUDIT) == []


def test_what_the_api_refuses_is_said(opened: tuple[Page, Played, Any]) -> None:
    page, played, _ = opened
    played.model = "no-such-model"
    page.run("tryIt()")
    assert "no-such-model" in text(page, "tried") and text(page, "tried").startswith("no answer: ")
    assert not page.run("at('ask').disabled")
    page.complaints[:] = [told for told in page.complaints if "404" not in told]  # the browser's own line
