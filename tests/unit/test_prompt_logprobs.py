"""Logprobs of a prompt are those of decoding, to the bit, however it is computed and whatever is cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engine import Engine
from actors.messages import FINISH_ERROR, TokenEvent
from actors.options import MicroBatches
from actors.scheduler import SchedulerLimits
from actors.scores import PromptScores
from ingress.journal import Journal, JournalError
from model.decoder import Decoder
from model.sampling import Sampling
from router.exchange import Exchange
from tests.reference_rows import rows_engine
from tests.shoals import Generated, engine_of, generate, local_parts, tcp_engine

TOLD = Sampling(max_tokens=24, temperature=1.0, seed=3, ignore_eos=True, logprobs=2)
ASKED = replace(TOLD, max_tokens=2, of_prompt=True)
PROMPT = list(range(20, 90))
MATE = [31, 41, 59, 26] * 9
Parts = tuple[Decoder, Exchange]


def events_of(
    engine: Engine, prompts: Sequence[Sequence[int]], told: Sequence[Sampling]
) -> list[list[TokenEvent]]:
    for name, (prompt, own) in enumerate(zip(prompts, told, strict=True)):
        assert engine.submit("test", str(name), prompt, [], own) is None
    events: list[list[TokenEvent]] = [[] for _ in prompts]
    while engine.has_work:
        for event in engine.step().get("test", []):
            if event.request_id.isdigit():
                events[int(event.request_id)].append(event)
    return events


def scored(engine: Engine, prompt: Sequence[int], told: Sampling = ASKED) -> TokenEvent:
    """The event that brings the scores, with a mate beside it."""
    [own, mate] = events_of(engine, [prompt, MATE], [told, TOLD])
    assert all(not event.prompt_logprobs and not event.prompt_top for event in [*own[1:], *mate])
    return own[0]


def decoded(parts: Parts, told: Sampling = TOLD) -> tuple[Generated, list[Any]]:
    """What decoding says, alone, without any feature."""
    [own] = events_of(engine_of(parts, prefix_cache=False), [PROMPT], [told])
    made = Generated([], [], None)
    for event in own:
        made.token_ids.extend(event.token_ids)
        made.logprobs.extend(event.logprobs)
    return made, [top for event in own for top in event.top]


@pytest.fixture(scope="module", params=["fp32", "without indexer"])
def parts(request: pytest.FixtureRequest, tiny_v32: Path, tiny_v3: Path) -> Parts:
    return local_parts(tiny_v3 if request.param == "without indexer" else tiny_v32)


def check(event: TokenEvent, made: Generated, top: list[Any]) -> None:
    count = len(made.token_ids)
    assert len(event.prompt_logprobs) == len(event.prompt_top) == len(PROMPT) + count - 1
    assert list(event.prompt_logprobs[-count:]) == made.logprobs
    assert list(event.prompt_top[-count:]) == top


def test_rows_of_a_graph_say_what_the_plain_runner_says(parts: Parts) -> None:
    made, top = decoded(parts)
    prompt, told = [*PROMPT, *made.token_ids], replace(ASKED, max_tokens=1)
    for chunk_tokens in (16, 128):
        check(scored(rows_engine(parts, SchedulerLimits(chunk_tokens=chunk_tokens)), prompt, told), made, top)


def test_they_are_those_of_decoding_at_every_chunk_size(parts: Parts) -> None:
    made, top = decoded(parts)
    for chunk_tokens in (16, 128):
        limits = SchedulerLimits(chunk_tokens=chunk_tokens)
        check(scored(engine_of(parts, limits), [*PROMPT, *made.token_ids]), made, top)


def test_a_cached_prefix_leaves_none_out_and_nothing_else_changes(parts: Parts) -> None:
    made, top = decoded(parts)
    engine, text = engine_of(parts), [*PROMPT, *made.token_ids]
    [plain] = generate(engine, [text], replace(ASKED, of_prompt=False))
    event = scored(engine, text)
    check(event, made, top)
    assert event.num_cached == 0
    assert list(event.token_ids) == plain.token_ids[: len(event.token_ids)]
    [again] = events_of(engine, [text], [replace(ASKED, of_prompt=False)])
    assert again[0].num_cached > 0, "who does not ask still finds its pages"


def test_running_out_of_pages_leaves_none_out_and_says_none_twice(parts: Parts) -> None:
    made, top = decoded(parts)
    engine = engine_of(parts, SchedulerLimits(chunk_tokens=16, max_step_tokens=79), num_pages=5)
    # The elder needs a page more while the other's prompt is half computed.
    engine.submit("test", "elder", [*MATE] * 3 + MATE[:18], [], replace(TOLD, max_tokens=12))
    while engine.stats()["decode_tokens"] == 0:
        engine.step()
    [own] = events_of(engine, [[*PROMPT, *made.token_ids]], [ASKED])
    assert engine.stats()["preemptions"] == 1
    check(own[0], made, top)
    assert all(not event.prompt_logprobs for event in own[1:])


def test_drafts_micro_batches_and_sockets_change_nothing(tiny_v32: Path) -> None:
    made, top = decoded(local_parts(tiny_v32))
    text = [*PROMPT, *made.token_ids]
    parts = local_parts(tiny_v32, draft_tokens=2)
    micro_batches: tuple[MicroBatches, ...] = (1, 2)
    for count in micro_batches:
        check(scored(engine_of(parts, draft_tokens=2, micro_batches=count), text), made, top)
    with tcp_engine(tiny_v32, 2) as engine:
        check(scored(engine, text), made, top)


def test_in_bf16_they_are_those_of_decoding_too(tiny_v32: Path) -> None:
    parts = local_parts(tiny_v32, torch.bfloat16)
    made, top = decoded(parts)
    check(scored(engine_of(parts), [*PROMPT, *made.token_ids]), made, top)


def test_a_prompt_of_one_token_has_none() -> None:
    scores = PromptScores(prompt_ids=[5], num_top=0)
    scores.add(0, torch.zeros(1, 2), lambda *_: pytest.fail("no row is needed"))
    assert scores.logprobs == []


def test_logits_that_are_not_finite_are_a_failure_and_no_number(parts: Parts) -> None:
    engine = engine_of(parts)
    honest = engine._runner.logits
    engine._runner.logits = lambda hidden, rows: honest(hidden, rows) / 0.0  # type: ignore[method-assign]
    assert scored(engine, PROMPT).finish == FINISH_ERROR


def test_a_journal_takes_them_once_and_whole() -> None:
    journal = Journal("a", [1, 2, 3], replace(ASKED, max_tokens=9))
    submit, _ = journal.resume()
    assert submit.sampling["of_prompt"] is True
    event = TokenEvent(request_id="a", first=0, token_ids=(7,), logprobs=(-1.0,), top=(((7, -1.0),),))
    with pytest.raises(JournalError, match="3 prompt tokens with 0"):
        journal.accept(event)
    taken = journal.accept(replace(event, prompt_logprobs=(-1.0, -2.0)))
    assert taken is not None and taken.prompt_logprobs == (-1.0, -2.0)
    submit, _ = journal.resume()
    assert submit.sampling["of_prompt"] is False, "they are known: another actor need not score the prompt"
