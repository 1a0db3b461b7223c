"""The load client: what it journals is what came, whole or not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.history import CUT, check, tokens_of
from cluster.streams import Question, Streams, ask, make_questions
from ingress.app import create_app
from ingress.engine_client import EngineClient
from ingress.limits import Limits
from ingress.tokenizer_file import write_byte_tokenizer
from ingress.tokens import Tokenizer
from model.cache import PAGE_TOKENS
from tests.unit.loopback_engine import TOKEN, Background, LoopbackEngine, hashed, http_server

MODEL = "loopback"


class Served:
    """The application over two loopback actors."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        write_byte_tokenizer(directory)
        self.background = Background()
        stack.callback(self.background.close)
        self.actors = [LoopbackEngine(actor_id=name, pause_s=0.001) for name in "ab"]
        places = [self.background.run(actor.start()) for actor in self.actors]
        for actor in self.actors:
            stack.callback(lambda actor=actor: self.background.run(actor.stop()))
        self.app = create_app(
            engine=EngineClient(places, token=TOKEN, identity="door-0"),
            tokenizer=Tokenizer.from_file(directory / "tokenizer.json"),
            model_name=MODEL,
            context_tokens=4096,
            limits=Limits(),
        )
        self.server = stack.enter_context(ExitStack())
        self.url = self.server.enter_context(http_server(self.background, self.app))


@pytest.fixture(name="served")
def _served(tmp_path: Path) -> Iterator[Served]:
    with ExitStack() as stack:
        yield Served(tmp_path, stack)


def answer(question: Question) -> list[int]:
    """What the loopback actor says."""
    ids = list(question.prompt)
    for _ in range(question.max_tokens):
        ids.append(hashed(ids, len(question.prompt)))
    return ids[len(question.prompt) :]


def test_every_event_is_journalled_though_actors_are_lost(served: Served):
    questions = make_questions(4, seed=0, max_tokens=20, vocab_size=272)
    for actor in served.actors:
        actor.drop_after = 30
    with Streams(served.url, MODEL, questions, 3) as streams:
        while len(streams.asked) < 9:
            time.sleep(0.005)
    assert len(streams.asked) >= 9
    expected = {request: answer(question) for request, question in streams.asked.items()}
    assert check(streams.history, expected) == []
    assert {event.request for event in streams.history} == set(streams.asked)
    assert all(actor.drop_after is None for actor in served.actors), "nobody was lost"


def test_some_questions_are_pages_long_and_half_of_those_share_no_page_with_any_request():
    questions = make_questions(9, seed=3, max_tokens=4, vocab_size=272)
    long = [question for question in questions if len(question.prompt) > 3 * PAGE_TOKENS]
    assert [question.name for question in long] == ["q1", "q4", "q7"]
    salts = {q.name: {q.body(MODEL, name).get("cache_salt") for name in ("a", "b")} for q in questions}
    shared = {q.name: {None} for q in questions}
    assert salts == shared | {"q1": {"a", "b"}, "q7": {"a", "b"}}


def test_a_refusal_and_a_connection_that_ends_are_failures_that_say_why(served: Served):
    [question] = make_questions(1, seed=1, max_tokens=2000, vocab_size=272)
    refused = list(ask(served.url, "another-model", question, "r"))
    assert [event.kind for event in refused] == ["sent", "end"]
    assert "HTTP 404" in str(refused[-1].finish)
    came = []
    for event in ask(served.url, MODEL, question, "r"):
        came.append(event)
        if len(came) == 5:
            for actor in served.actors:
                actor.fail = True
    assert tokens_of(came) == answer(question)[: len(tokens_of(came))]
    assert str(came[-1].finish).startswith("error")
    gone = list(ask("http://127.0.0.1:1", MODEL, question, "r"))
    assert str(gone[-1].finish).startswith(CUT)
