"""More actors, fewer, others, under streams: no request fails, no token differs, nobody is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster.history import check, tokens_of
from cluster.streams import Streams, ask, make_questions
from tests.ray.conftest import Served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

LIMIT_S = 120.0
MODEL, STREAMS, TOKENS = "tiny-v32", 4, 48


def until(is_so: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.2)


def order(cluster: Served, what: str, **arguments: object) -> list[str]:
    """Obeyed to the end; who serves then."""
    assert "done" in cluster.admin(f"/orders/{what}", arguments)

    def is_settled() -> bool:
        try:
            return bool(cluster.admin("/snapshot")["settled"])
        except OSError:
            return False  # the controller is in between two lives

    until(is_settled, lambda: cluster.admin("/snapshot")["events"][-20:])
    return sorted(actor["actor_id"] for actor in cluster.admin("/snapshot")["actors"])


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


def test_actors_come_and_go_under_streams(cluster: Served) -> None:
    two = ["attention-0", "expert-0", "expert-1"]
    with watched(cluster):
        assert order(cluster, "scale", experts=4) == [*two, "expert-2", "expert-3"]
        assert order(cluster, "scale", attention=2) == [
            "attention-0",
            "attention-1",
            *two[1:],
            "expert-2",
            "expert-3",
        ]
        held = {a["actor_id"]: a["experts"] for a in cluster.admin("/snapshot")["actors"]}
        assert {held[name] for name in held if name.startswith("expert")} == {8}
        assert order(cluster, "scale", experts=2, attention=1) == two
        assert order(cluster, "drain", name="expert-0") == ["attention-0", "expert-1"]
        assert order(cluster, "scale", experts=2) == two
    until(
        lambda: workers(cluster) == len(two) + 1,
        lambda: f"{workers(cluster)} workers for 3 actors, 1 standby",
    )


def test_every_process_is_replaced_under_streams(cluster: Served) -> None:
    old = {actor["pid"] for actor in cluster.admin("/snapshot")["actors"]}
    with watched(cluster):
        order(cluster, "restart")
        assert not old & {actor["pid"] for actor in cluster.admin("/snapshot")["actors"]}
    assert cluster.admin("/snapshot")["ready"]
