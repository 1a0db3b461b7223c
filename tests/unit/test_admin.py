"""The admin listener: nothing without the key, a page that reaches nowhere, and what `shoal top` draws."""

from __future__ import annotations

import io
import json
import re
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster import beacon
from cluster.admin import AdminServer
from cluster.cli import app
from cluster.rates import counter_rates, expert_rates
from cluster.snapshot import Unavailable, held_masks
from cluster.top import draw, request_table
from router.view import ActorId, ExpertActor, make_view

KEY = "a key for tests"
REQUEST = {
    "id": "cmpl-0123456789abcdef-0",
    "tenant": "ann",
    "prompt_tokens": 64,
    "generated_tokens": 9,
    "finish": "length",
    "actors": ["attention-0", "attention-1"],
    "queue_s": None,
    "first_token_s": 0.25,
    "experts_s": 0.5,
    "whole_s": 1.5,
    "ingress": "ingress-ab",
}
ROUTES = (
    *(("GET", "/snapshot"), ("GET", "/targets"), ("GET", "/metrics"), ("POST", "/trace")),
    ("POST", "/try"),
    *(("POST", "/actors/expert-0/kill"), ("POST", "/orders/scale")),
)


def actor(name: str, kind: str, **stats: float) -> dict[str, Any]:
    return {
        "actor_id": name,
        "kind": kind,
        "state": "serves",
        "incarnation": 1,
        "pid": 11,
        "host": "127.0.0.1",
        "metrics_port": 7001,
        "experts": 4,
        "deaths": 1,
        "faults": {"died": 1},
        "recovery_s": 0.25,
        "detection_s": 0.125,
        "stats": stats,
        "expert_pairs": None,
    }


def snapshot(at_s: float, pairs: list[list[int]], decoded: float = 0.0) -> dict[str, Any]:
    return {
        "at_s": at_s,
        "model": "tiny",
        "url": "http://127.0.0.1:8000",
        "epoch": 3,
        "ready": True,
        "settled": True,
        "balance": {"before": 1.5, "after": 1.1, "slots_written": 7},
        "decisions": [["scale", "operator", 2]],
        "actors": [
            actor("expert-0", "expert", pairs=10.0),
            {
                **actor("attention-0", "attention", decode_tokens=decoded, prefill_tokens=0.0, running=2.0),
                "expert_pairs": pairs,
            },
        ],
        "ingresses": [("ingress-ab", "127.0.0.1", 7002)],
        "experts": {"first_layer": 1, "held": {"expert-0": ["3"]}},
        "requests": [REQUEST],
        "events": [{"at_s": at_s - 2.0, "text": "expert-0 died"}],
    }


class Still:
    """A cluster that stands still."""

    def __init__(self) -> None:
        self.killed: list[str] = []

    def snapshot(self) -> dict[str, Any]:
        return snapshot(100.0, [[4, 0], [1, 1]])

    def kill(self, actor_id: str) -> bool:
        self.killed.append(actor_id)
        return actor_id == "expert-0"

    def trace(self, steps: int, seconds: float) -> dict[str, Any]:
        name = f"{steps} steps, {seconds:g} s"
        span = {"ph": "X", "name": name, "cat": "compute", "pid": 1, "tid": 1, "ts": 0, "dur": 1}
        return {"traceEvents": [{**span, "args": {"step": 1}}]}

    def order(self, order: str, arguments: Mapping[str, Any]) -> dict[str, str]:
        return {"done": f"{order} {dict(arguments)}"} if order == "scale" else {"error": "no order"}


@pytest.fixture(scope="module")
def still() -> Still:
    return Still()


@pytest.fixture(scope="module")
def admin(still: Still) -> Iterator[AdminServer]:
    server = AdminServer(still, "127.0.0.1", 0, KEY)
    yield server
    server.close()


def ask(admin: AdminServer, path: str, method: str = "GET", key: str | None = KEY) -> tuple[int, str, Any]:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    request = urllib.request.Request(admin.url + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", [None, "", "a key", KEY + "x", KEY.upper()])
def test_without_the_key_nothing_is_told_or_done(
    admin: AdminServer, still: Still, method: str, path: str, key: str | None
) -> None:
    status, body, headers = ask(admin, path, method, key)
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert set(json.loads(body)) == {"error"}
    assert not still.killed


def test_the_page_may_reach_nothing_but_its_own_origin(admin: AdminServer) -> None:
    status, page, headers = ask(admin, "/ui", key=None)
    assert status == 200
    policy = headers["content-security-policy"]
    [nonce] = set(re.findall(r"'nonce-([^']+)'", policy))
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy
    assert page.count(f'nonce="{nonce}"') == len(re.findall("<(?:script|style)", page)) == 2
    assert not re.search(r"https?://|//[a-z]+\.|@import|src=", page)
    assert KEY not in page
    assert ask(admin, "/ui", key=None)[2]["content-security-policy"] != policy


def test_prometheus_is_told_of_every_process(admin: AdminServer) -> None:
    found = json.loads(ask(admin, "/targets")[1])
    assert {(t["labels"]["role"], t["targets"][0]) for t in found} == {
        ("controller", f"127.0.0.1:{admin.port}"),
        ("expert", "127.0.0.1:7001"),
        ("attention", "127.0.0.1:7001"),
        ("ingress", "127.0.0.1:7002"),
    }
    assert 'shoal_actors{kind="expert",state="serves"} 1.0' in ask(admin, "/metrics")[1]


def test_probes_need_no_key_and_learn_only_whether_it_serves(admin: AdminServer) -> None:
    assert ask(admin, "/health", key=None)[:2] == (200, "")
    assert ask(admin, "/ready", key=None)[:2] == (200, '{"ready": true}')


def test_while_the_controller_is_away_the_answer_says_so() -> None:
    class Gone(Still):
        def snapshot(self) -> dict[str, Any]:
            raise Unavailable("the controller does not answer")

    server = AdminServer(Gone(), "127.0.0.1", 0, KEY)
    try:
        for path in ("/snapshot", "/targets", "/metrics"):
            status, body, _ = ask(server, path)
            assert status == 503 and "try again" in json.loads(body)["error"]
        assert ask(server, "/ready")[:2] == (503, '{"ready": false}')
        assert ask(server, "/health")[0] == 200, "it is not this process that is away"
    finally:
        server.close()


def test_killing_whom_there_is_not_is_a_404(admin: AdminServer, still: Still) -> None:
    assert ask(admin, "/actors/expert-0/kill", "POST")[0] == 200
    assert ask(admin, "/actors/nobody/kill", "POST")[0] == 404
    assert ask(admin, "/actors/expert-0/kill", "GET")[0] == 405
    assert still.killed == ["expert-0", "nobody"]
    still.killed.clear()


def attention(at_s: float, *answers: tuple[int, list[list[int]] | None]) -> dict[str, Any]:
    """A look at attention actors: of each its incarnation and what it answered, None if it was silent."""
    actors = [
        {
            **actor(f"attention-{i}", "attention"),
            "incarnation": life,
            "stats": None if pairs is None else {"decode_tokens": float(sum(map(sum, pairs)))},
            "expert_pairs": pairs,
        }
        for i, (life, pairs) in enumerate(answers)
    ]
    return {**snapshot(at_s, []), "actors": actors}


def test_rates_are_what_lies_between_two_looks() -> None:
    before, now = attention(100.0, (1, [[4, 0], [1, 1]])), attention(102.0, (1, [[8, 0], [1, 3]]))
    assert expert_rates([before, now]) == [[2.0, 0.0], [0.0, 1.0]]
    assert expert_rates([now]) == [[0.0, 0.0], [0.0, 0.0]]
    seen_no_expert = attention(100.0, (1, []))
    assert expert_rates([seen_no_expert, now]) == [[4.0, 0.0], [0.5, 1.5]]


# A look a second; each of two actors answers with 10 more pairs a second.
def steady(silent: dict[int, int], reborn_at: int = 99) -> list[dict[str, Any]]:
    """silent: by look, which actor misses it. reborn_at: the second one counts from nothing then."""

    def answer(look: int, which: int) -> tuple[int, list[list[int]] | None]:
        is_new = which == 1 and look >= reborn_at
        count = 10 * (look - reborn_at) if is_new else 10_000 + 10 * look
        return 20 + which + is_new, None if silent.get(look) == which else [[count, 0]]

    return [attention(100.0 + look, answer(look, 0), answer(look, 1)) for look in range(11)]


@pytest.mark.parametrize("look", [0, 5, 10])
def test_an_actor_that_misses_a_look_moves_the_rates_by_no_more_than_that_look(look: int) -> None:
    [[rate, other]] = expert_rates(steady({look: 1}))
    assert 19.0 <= rate <= 20.0 and other == 0.0


def test_an_actor_that_is_born_again_takes_nothing_of_the_others_away() -> None:
    [[rate, _]] = expert_rates(steady({}, reborn_at=6))
    assert 19.0 <= rate <= 20.0
    window = steady({}, reborn_at=6)
    assert counter_rates(window, "decode_tokens") == {
        ("attention-0", 20): 10.0,
        ("attention-1", 21): 5.0,
        ("attention-1", 22): 4.0,
    }


def test_who_holds_what_is_told_once_if_layers_are_alike() -> None:
    actors = [
        ExpertActor(actor_id=ActorId(name), incarnation=1, host="h", port=1)
        for name in ("expert-0", "expert-1")
    ]
    held = {actors[0].actor_id: (0, 2), actors[1].actor_id: (1, 2, 3)}
    view = make_view(1, actors, held, num_experts=4, first_layer=1, num_layers=3)
    assert held_masks(view) == {"expert-0": ["5"], "expert-1": ["e"]}


def test_the_picture_names_actors_load_and_events() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(draw([snapshot(100.0, [[4, 0], [1, 1]], 10.0), snapshot(102.0, [[8, 0], [3, 3]], 30.0)]))
    shown = console.export_text()
    assert "attention-0" in shown and "10 tokens/s" in shown and "0.25 s" in shown
    assert "worst imbalance 2.00" in shown
    assert "2 s ago  expert-0 died" in shown
    console.print(draw([snapshot(1.0, [])]))
    assert "no load" in console.export_text()


def test_top_finds_the_cluster_of_this_machine_and_nobody_else_reads_its_key(
    admin: AdminServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SHOAL_ADMIN_KEY", raising=False)
    nobody = CliRunner().invoke(app, ["top", "--json"])
    assert nobody.exit_code == 1 and "shoal serve" in nobody.stderr
    with beacon.lit(admin.url, KEY):
        [file] = tmp_path.rglob("*.json")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        result = CliRunner().invoke(app, ["top", "--json"])
        assert json.loads(result.stdout)["model"] == "tiny"
    assert beacon.newest() is None
    wrong = CliRunner().invoke(app, ["top", "--json", "--url", admin.url, "--key", "wrong"])
    assert wrong.exit_code == 1 and "--key" in wrong.stderr


def test_requests_are_listed_with_who_had_them_and_for_how_long(admin: AdminServer) -> None:
    place = ["--url", admin.url, "--key", KEY]
    told = CliRunner().invoke(app, ["requests", "--json", *place])
    assert json.loads(told.stdout) == [REQUEST]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(request_table([REQUEST]))
    shown = console.export_text()
    assert "6789abcdef-0" in shown and "ann" in shown and "attention-0, then attention-1" in shown
    assert "0.250 s" in shown and "1.500 s" in shown


def test_a_beacon_of_a_dead_process_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with beacon.lit("http://127.0.0.1:1", "k"):
        [file] = tmp_path.rglob("*.json")
        file.rename(file.with_name("4194305.json"))  # above any process number
        assert beacon.newest() is None


def test_an_order_is_passed_on_and_its_answer_or_refusal_told(admin: AdminServer) -> None:
    def order(name: str, body: bytes) -> tuple[int, Any]:
        request = urllib.request.Request(f"{admin.url}/orders/{name}", data=body)
        request.add_header("authorization", f"Bearer {KEY}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    assert order("scale", b'{"experts": 3}') == (200, {"done": "scale {'experts': 3}"})
    assert order("dance", b"") == (400, {"error": "no order"})
    for wrong in (b"[1]", b"{", b"\xff"):
        assert order("scale", wrong) == (400, {"error": "the body is no JSON object"})


def test_the_commands_order_and_wait_until_all_is_so(admin: AdminServer) -> None:
    place = ["--url", admin.url, "--key", KEY]
    done = CliRunner().invoke(app, ["scale", "experts=3", "attention=2", *place])
    assert done.exit_code == 0, done.output
    assert "scale {'experts': 3, 'attention': 2}" in done.output and "done in" in done.output
    told = json.loads(CliRunner().invoke(app, ["scale", "experts=3", "--json", *place]).stdout)
    assert (told["order"], told["done"], told["settled"]) == ("scale", "scale {'experts': 3}", True)
    ordered = CliRunner().invoke(app, ["scale", "experts=3", "--json", "--no-wait", *place])
    assert json.loads(ordered.stdout)["settled"] is False
    for wrong in (["scale", "experts", *place], ["drain", "expert-9", *place]):
        assert CliRunner().invoke(app, wrong).exit_code == 1
