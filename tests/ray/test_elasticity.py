"""More actors, fewer, others, under streams: no request fails, no token differs, nobody is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from cluster.history import check, tokens_of
from cluster.streams import Streams, ask, make_questions
from tests.ray.conftest import Served

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

LIMIT_S = 240.0  # a restart of everything under streams takes 30 to 150 s on two cores
TRIES = 3
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
    """Streams are under way; every event of them is checked. Their prompts are pages long."""
    short = make_questions(STREAMS, seed=1, max_tokens=TOKENS, vocab_size=272)
    questions = [replace(question, prompt=(question.prompt * 8)[:320]) for question in short]
    expected = {q.name: tokens_of(ask(cluster.url, MODEL, q, q.name)) for q in questions}
    assert {len(tokens) for tokens in expected.values()} == {TOKENS}
    with Streams(cluster.url, MODEL, questions, STREAMS) as streams:
        yield streams
        before = streams.num_tokens
        # more than is left of those under way: requests that were sent after the order are among them
        until(lambda: streams.num_tokens > before + STREAMS * TOKENS, lambda: "the streams stand still")
    answers = {request: expected[question.name] for request, question in streams.asked.items()}
    assert check(streams.history, answers) == []
    assert len(answers) > STREAMS


@pytest.fixture(autouse=True)
def _as_it_was(cluster: Served) -> Iterator[None]:
    """Whatever becomes of a test: others share this cluster."""
    yield
    order(cluster, "scale", attention=2)  # attention-0 again, if it was drained
    order(cluster, "scale", attention=1, experts=2)


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


def pages_in(cluster: Served, name: str) -> float:
    """That this attention actor has taken over in this life."""
    [heir] = [actor for actor in cluster.admin("/snapshot")["actors"] if actor["actor_id"] == name]
    return float((heir["stats"] or {}).get("handed_pages_in", 0))


def test_the_streams_of_an_attention_actor_that_is_drained_go_on_with_their_pages(cluster: Served) -> None:
    three = ["attention-1", "expert-0", "expert-1"]
    with watched(cluster):
        for _ in range(
            TRIES
        ):  # it may have nothing just then, or too little time: who has no pages computes them
            order(cluster, "scale", attention=2)
            assert order(cluster, "drain", name="attention-0") == three
            if pages_in(cluster, "attention-1") > 0:
                break
        else:
            pytest.fail(f"no page was handed over: {cluster.admin('/snapshot')['actors']}")


def test_every_process_is_replaced_under_streams_which_go_on_with_their_pages(cluster: Served) -> None:
    with watched(cluster):
        for _ in range(TRIES):
            old = {actor["pid"] for actor in cluster.admin("/snapshot")["actors"]}
            order(cluster, "restart")
            assert not old & {actor["pid"] for actor in cluster.admin("/snapshot")["actors"]}
            if pages_in(cluster, "attention-0") > 0:
                break
        else:
            pytest.fail(f"no page was handed over: {cluster.admin('/snapshot')['actors']}")
    assert cluster.admin("/snapshot")["ready"]
