"""More actors, fewer, others, under streams: no request fails, no token differs, nobody is left behind."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.history import check, tokens_of
from cluster.streams import Streams, ask, make_questions
from tests.ray.conftest import Served, served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

LIMIT_S = 120.0
MODEL, STREAMS, TOKENS = "tiny-v32", 4, 48


@pytest.fixture(scope="module", name="small")
def _small(checkpoint: Path) -> Iterator[Served]:
    with served(checkpoint, "--attention", "1", "--experts", "2") as running:
        yield running


def admin(cluster: Served, path: str, body: dict[str, Any] | None = None) -> Any:
    place = cluster.ready["admin"]
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(place["url"] + path, data=data)
    request.add_header("authorization", f"Bearer {place['key']}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def until(is_so: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.2)


def order(cluster: Served, what: str, **arguments: object) -> list[str]:
    """Obeyed to the end; who serves then."""
    assert "done" in admin(cluster, f"/orders/{what}", arguments)

    def is_settled() -> bool:
        try:
            return bool(admin(cluster, "/snapshot")["settled"])
        except OSError:
            return False  # the controller is in between two lives

    until(is_settled, lambda: admin(cluster, "/snapshot")["events"][-20:])
    return sorted(actor["actor_id"] for actor in admin(cluster, "/snapshot")["actors"])


@contextmanager
def watched(cluster: Served) -> Iterator[Streams]:
    """Streams are under way; every event of them is checked."""
    questions = make_questions(STREAMS, seed=1, max_tokens=TOKENS, vocab_size=272)
    expected = {q.name: tokens_of(ask(cluster.url, MODEL, q, q.name)) for q in questions}
    assert {len(tokens) for tokens in expected.values()} == {TOKENS}
    with Streams(cluster.url, MODEL, questions, STREAMS) as streams:
        yield streams
        before = streams.num_tokens
        until(lambda: streams.num_tokens > before + TOKENS, lambda: "the streams stand still")
    answers = {request: expected[question.name] for request, question in streams.asked.items()}
    assert check(streams.history, answers) == []
    assert len(answers) > STREAMS


def workers(cluster: Served) -> int:
    return sum(process.name().startswith("ray::Worker") for process in cluster.descendants())


def test_actors_come_and_go_under_streams(small: Served) -> None:
    two = ["attention-0", "expert-0", "expert-1"]
    with watched(small):
        assert order(small, "scale", experts=4) == [*two, "expert-2", "expert-3"]
        assert order(small, "scale", attention=2) == [
            "attention-0",
            "attention-1",
            *two[1:],
            "expert-2",
            "expert-3",
        ]
        held = {a["actor_id"]: a["experts"] for a in admin(small, "/snapshot")["actors"]}
        assert {held[name] for name in held if name.startswith("expert")} == {8}
        assert order(small, "scale", experts=2, attention=1) == two
        assert order(small, "drain", name="expert-0") == ["attention-0", "expert-1"]
        assert order(small, "scale", experts=2) == two
    until(lambda: workers(small) == len(two) + 1, lambda: f"{workers(small)} workers for 3 actors, 1 standby")


def test_every_process_is_replaced_under_streams(small: Served) -> None:
    old = {actor["pid"] for actor in admin(small, "/snapshot")["actors"]}
    with watched(small):
        order(small, "restart")
        assert not old & {actor["pid"] for actor in admin(small, "/snapshot")["actors"]}
    assert admin(small, "/snapshot")["ready"]
