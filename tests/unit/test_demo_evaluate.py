"""Held-out questions over real HTTP: right answers count, wrong ones do not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from fastapi import FastAPI, Response
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from actors.attention import AttentionServer, ViewInbox
from demo.client import EndpointError, Reply, calls_as_text, connected
from demo.evaluate import as_dict, ask, main
from demo.evaluation import (
    ANSWER,
    CALL,
    PARTS,
    ROUND_TRIP,
    Evaluation,
    Outcome,
    Score,
    by_fact,
    clipped,
    read_evaluation,
    score,
    scores_by,
    write_evaluation,
)
from demo.exam import NEEDLE_CELLS, Question, questions
from demo.sample import Sample
from demo.tool_calls import ToolCall
from ingress.app import create_app
from ingress.encoding import encode_history, encode_messages
from ingress.engine_client import EngineClient
from ingress.link import Endpoint
from ingress.tokenizer_file import write_byte_tokenizer
from ingress.tokens import Tokenizer
from tests.shoals import CONTEXT, local_engine
from tests.unit.loopback_engine import TOKEN, Background, LoopbackEngine, TokenFunction, http_server, saying

SEED = 3
EOS_ID = 1
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Served:
    """The real application before an engine that says what it is told to."""

    url: str
    actor: LoopbackEngine
    tokenizer: Tokenizer

    def answers(self, known: Sequence[Sample]) -> TokenFunction:
        """The reference answer where one of `known` is asked, else nonsense."""
        pairs = {tuple(self._prompt(sample)): self._answer(sample) for sample in known}
        nonsense = self.tokenizer.encode_text("nonsense")

        def next_id(ids: Sequence[int], num_prompt: int) -> int:
            answer = pairs.get(tuple(ids[:num_prompt]), nonsense)
            place = len(ids) - num_prompt
            return answer[place] if place < len(answer) else EOS_ID

        return next_id

    def _prompt(self, sample: Sample) -> list[int]:
        segments = encode_messages(sample.messages, tools=sample.tools, thinking=sample.thinking)
        return self.tokenizer.encode_prompt(segments)

    def _answer(self, sample: Sample) -> list[int]:
        whole = [*sample.messages, sample.answer]
        segments = encode_history(whole, tools=sample.tools, thinking=sample.thinking)
        prompt, ids = self._prompt(sample), self.tokenizer.encode_prompt(segments)
        assert ids[: len(prompt)] == prompt
        return ids[len(prompt) :]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(directory)
    return Tokenizer.from_file(directory / "tokenizer.json")


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    loop = Background()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer, background: Background) -> Iterator[Served]:
    actor = LoopbackEngine(tokens_per_event=32)
    engine = EngineClient([background.run(actor.start())], token=TOKEN, identity="door-0", patience_s=5.0)
    app = create_app(engine=engine, tokenizer=tokenizer, model_name="tiny", context_tokens=16_384)
    with http_server(background, app) as url:
        yield Served(url, actor, tokenizer)
    background.run(actor.stop())


def reports(asked: Sequence[Question]) -> list[Sample]:
    """What is asked after each right call."""
    return [
        question.report(ToolCall(name=wanted["name"], arguments=wanted["arguments"]))
        for question in asked
        if question.report is not None
        for wanted in [question.sample.expected]
    ]


@pytest.fixture(scope="module")
def exam() -> list[Question]:
    """Of every task, without the long needles."""
    return [one for one in questions(SEED, 2) if one.facts.get("tokens", 0) in (0, 64)]


@pytest.fixture(scope="module")
def calls(exam: list[Question]) -> list[Question]:
    return [one for one in exam if one.report is not None]


def asked_of(served: Served, known: Sequence[Sample], asked: Sequence[Question]) -> list[Outcome]:
    served.actor.next_id = served.answers(known)
    return ask(served.url, asked, max_tokens=400, console=QUIET)[1]


# Asking


def test_the_reference_answers_are_right_in_every_group(served: Served, exam: list[Question]) -> None:
    outcomes = asked_of(served, [*(one.sample for one in exam), *reports(exam)], exam)
    assert {one.task for one in outcomes} == {"sql", "arithmetic", "tool", "needle", "about"}
    assert [one.text for one in outcomes if not one.is_right] == []
    assert {one.facts["part"] for one in outcomes if one.task == "tool"} == set(PARTS)
    assert {one.thinking for one in outcomes if one.task == "arithmetic"} == {True, False}
    assert all(one.finish_reason == "stop" and one.tokens > 0 for one in outcomes)


def test_nonsense_is_wrong_in_every_group(served: Served, exam: list[Question]) -> None:
    outcomes = asked_of(served, [], exam)
    assert [one.task for one in outcomes if one.is_right] == []
    # Unfinished reasoning is no answer.
    assert {one.text for one in outcomes if not one.thinking} == {"nonsense"}
    assert {one.text for one in outcomes if one.thinking} == {""}


def test_a_right_call_with_a_wrong_report_is_no_round_trip(served: Served, calls: list[Question]) -> None:
    outcomes = asked_of(served, [one.sample for one in calls], calls)
    parts = {part: one.share for part, one in by_fact(outcomes, "part").items()}
    assert parts == {CALL: 1.0, ANSWER: 0.0, ROUND_TRIP: 0.0}


def test_a_right_report_after_a_wrong_call_is_no_round_trip(served: Served, calls: list[Question]) -> None:
    outcomes = asked_of(served, reports(calls), calls)
    parts = {part: one.share for part, one in by_fact(outcomes, "part").items()}
    assert parts == {CALL: 0.0, ANSWER: 1.0, ROUND_TRIP: 0.0}


def test_a_call_with_special_tokens_spelled_as_text_is_wrong(served: Served, calls: list[Question]) -> None:
    """What the content shows of both is the same where the tokenizer hides special tokens."""
    written = calls_as_text("", calls[0].sample.answer["tool_calls"])
    served.actor.next_id = saying(written.replace("\uff5cDSML\uff5c", ""))
    outcomes = ask(served.url, calls[:1], max_tokens=400, console=QUIET)[1]
    assert not any(one.is_right for one in outcomes)


def test_questions_are_the_same_for_a_seed_and_other_ones_for_another() -> None:
    drawn = [[one.sample for one in questions(seed, 1)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 5 + len(NEEDLE_CELLS)
    assert [one for one in drawn[0] if one in drawn[2] and one.task != "about"] == []


def test_the_command_writes_what_the_report_reads(served: Served, tmp_path: Path) -> None:
    asked = questions(SEED, 1)
    served.actor.next_id = served.answers([*(one.sample for one in asked), *reports(asked)])
    out = tmp_path / "results" / "evaluation.json"
    command = typer.Typer()
    command.command()(main)
    arguments = ["--url", served.url, "--samples", "1", "--seed", str(SEED), "--out", str(out), "--json"]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    evaluation = read_evaluation(out)
    assert all(one.is_right for one in evaluation.outcomes)
    assert json.loads(result.stdout) == as_dict(evaluation.outcomes)
    assert by_fact(evaluation.of("needle"), "tokens").keys() == {tokens for tokens, _ in NEEDLE_CELLS}
    assert as_dict(evaluation.outcomes)["arithmetic"]["all, with thinking"]["of"] == 1
    assert (evaluation.model, evaluation.seed, evaluation.samples) == ("tiny", SEED, 1)
    assert str(tmp_path) not in out.read_text(encoding="utf-8")


def test_a_real_engine_is_asked_as_well(
    tiny_v32: Path, tokenizer: Tokenizer, background: Background, exam: list[Question]
) -> None:
    """A random model is wrong, but every request is served."""
    server = AttentionServer(
        local_engine(tiny_v32),
        views=ViewInbox(),
        stopping=threading.Event(),
        actor_id="attention-0",
        incarnation=1,
        token=TOKEN,
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    place = Endpoint(actor_id="attention-0", host=server.host, port=server.port)
    engine = EngineClient([place], token=TOKEN, identity="door-0", patience_s=30.0)
    app = create_app(engine=engine, tokenizer=tokenizer, model_name="random", context_tokens=CONTEXT)
    asked = [one for one in exam if one.sample.task in ("sql", "arithmetic", "about")]
    with http_server(background, app) as url:
        model, outcomes = ask(url, asked, max_tokens=3, console=QUIET)
    server.stop()
    thread.join(10)
    assert (model, len(outcomes)) == ("random", len(asked))
    assert not any(one.is_right for one in outcomes)
    assert all(one.tokens == 3 and one.finish_reason == "length" for one in outcomes)


# The client before endpoints that are not Shoal


def endpoint(message: dict[str, Any] | None) -> FastAPI:
    """Answers every chat with `message`, or with HTTP 500."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "other"}]}

    @app.post("/v1/chat/completions")
    async def chat() -> Any:
        if message is None:
            return Response("out of order", status_code=500)
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": usage}

    return app


def reply_of(background: Background, message: dict[str, Any] | None, sample: Sample) -> Reply:
    async def one(url: str) -> Reply:
        async with connected(url, concurrency=1) as client:
            return await client.ask(sample.messages, tools=sample.tools, max_tokens=1)

    with http_server(background, endpoint(message)) as url:
        return asyncio.run(one(url))


def test_parsed_tool_calls_are_judged_like_the_text_that_they_stand_for(
    background: Background, calls: list[Question]
) -> None:
    question = calls[0]
    message = {"content": None, "tool_calls": question.sample.answer["tool_calls"]}
    reply = reply_of(background, message, question.sample)
    assert question.task.is_right(question.sample, reply.text)
    broken = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}
    reply = reply_of(background, {"content": "so", "tool_calls": [broken]}, question.sample)
    assert reply.text == "so"


def test_an_endpoint_that_fails_is_named_in_its_words(background: Background, calls: list[Question]) -> None:
    sample = calls[0].sample
    with pytest.raises(EndpointError, match="HTTP 500: out of order"):
        reply_of(background, None, sample)
    with pytest.raises(EndpointError, match="KeyError 'content'"):
        reply_of(background, {}, sample)


def test_no_endpoint_at_all_is_one_line_for_the_user(tmp_path: Path) -> None:
    command = typer.Typer()
    command.command()(main)
    out = tmp_path / "evaluation.json"
    result = CliRunner().invoke(command, ["--url", "http://127.0.0.1:9", "--samples", "1", "--out", str(out)])
    assert result.exit_code == 1
    assert "ConnectError" in result.output
    assert not out.exists()


# Counting


QUICK = settings(max_examples=40)
COUNTS = st.integers(0, 500).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of)))


@QUICK
@given(COUNTS)
def test_an_interval_holds_its_share_and_mirrors_that_of_the_wrong_answers(counts: tuple[int, int]) -> None:
    right, of = counts
    low, high = Score(right=right, of=of).interval
    assert 0 <= low < high <= 1
    assert not of or low <= right / of <= high
    assert Score(right=of - right, of=of).interval == pytest.approx((1 - high, 1 - low), abs=1e-12)


@QUICK
@given(COUNTS.filter(lambda counts: counts[1] > 0), st.integers(2, 9))
def test_more_samples_of_the_same_share_narrow_the_interval(counts: tuple[int, int], times: int) -> None:
    narrow = Score(right=counts[0] * times, of=counts[1] * times).interval
    wide = Score(right=counts[0], of=counts[1]).interval
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


@pytest.mark.parametrize(("right", "of", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775)])
def test_intervals_are_those_of_the_textbook(right: int, of: int, low: float, high: float) -> None:
    assert Score(right=right, of=of).interval == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("right", "of"), [(2, 1), (-1, 1)])
def test_a_score_of_more_than_all_is_refused(right: int, of: int) -> None:
    with pytest.raises(ValueError, match="must be between"):
        Score(right=right, of=of)


@QUICK
@given(st.lists(st.tuples(st.sampled_from([None, 1, 2, 10]), st.booleans())))
def test_groups_add_up_to_all_that_have_the_fact(drawn: list[tuple[int | None, bool]]) -> None:
    outcomes = [
        Outcome(task="sql", is_right=right, facts={} if joins is None else {"joins": joins})
        for joins, right in drawn
    ]
    groups = by_fact(outcomes, "joins")
    assert list(groups) == sorted(groups)
    assert sum(one.of for one in groups.values()) == sum(joins is not None for joins, _ in drawn)
    assert sum(one.right for one in groups.values()) == sum(right for joins, right in drawn if joins)
    assert scores_by(outcomes, lambda one: None) == {}
    assert score(outcomes).of == len(drawn)


@QUICK
@given(st.text(), st.integers(20, 200))
def test_clipped_text_is_one_short_line_and_keeps_both_ends(text: str, limit: int) -> None:
    shown = clipped(text, limit)
    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    line = " ".join(text.split())
    assert shown == line or (line.startswith(shown[:5]) and line.endswith(shown[-5:]))


def test_an_evaluation_reads_back_as_it_was_written(tmp_path: Path) -> None:
    outcome = Outcome(
        task="tool",
        is_right=True,
        facts={"part": CALL, "depth": 0.5, "joins": 2},
        text='\uff5cDSML\uff5c "quoted"\n',
        tokens=7,
    )
    evaluation = Evaluation(
        command="c",
        seed=1,
        samples=2,
        model="m",
        seconds=1.5,
        outcomes=(outcome, Outcome(task="x", is_right=False)),
    )
    for one in (evaluation, Evaluation(command="c", seed=1, samples=2, model="m", seconds=1.5, outcomes=())):
        write_evaluation(tmp_path / "e.json", one)
        assert read_evaluation(tmp_path / "e.json") == one
