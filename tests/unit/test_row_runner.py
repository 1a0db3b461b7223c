"""An engine on rows gives the bits of one on the plain runner, whatever shares a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.engine import Engine
from actors.handover import Sender
from actors.handover_desk import HandoverDesk
from actors.messages import HandOver
from actors.page_frames import Offer, Wanted
from actors.row_runner import SHORT_CHUNK, parts_of, size_for, sizes_up_to
from actors.scheduler import SchedulerLimits
from actors.trace import COMPUTE, LOOP, Recorder
from model.batch import Chunk
from model.decoder import Decoder
from model.row_buffers import PageTables, RowBuffers, StepRows
from model.sampling import Sampling
from router.exchange import Exchange
from tests.reference_rows import ReferenceRows, rows_engine
from tests.shoals import Generated, engine_of, generate, local_parts, prompts_of

GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=0)
LENGTHS = (100, 3, 61, 64, 65, 1, 126, 17)
CPU = torch.device("cpu")


def prompts() -> list[list[int]]:
    return prompts_of(LENGTHS)


@pytest.fixture(scope="module")
def parts(tiny_v32: Path) -> tuple[Decoder, Exchange]:
    return local_parts(tiny_v32)


@pytest.fixture(scope="module")
def alone(parts: tuple[Decoder, Exchange]) -> list[Generated]:
    """Every prompt by itself on the plain runner."""
    engine = engine_of(parts)
    return [generate(engine, [prompt], GREEDY)[0] for prompt in prompts()]


def test_together_in_rows_equals_each_alone_on_the_plain_runner(
    parts: tuple[Decoder, Exchange], alone: list[Generated]
) -> None:
    engine = rows_engine(parts)
    assert generate(engine, prompts(), GREEDY) == alone
    assert engine.stats()["padding_rows"] > 0, "a size was taken that is larger than the step"


def test_chunks_of_any_size_are_the_same_rows(
    parts: tuple[Decoder, Exchange], alone: list[Generated]
) -> None:
    limits = SchedulerLimits(max_sequences=3, chunk_tokens=48, max_step_tokens=70)
    engine = rows_engine(parts, limits)
    assert generate(engine, prompts(), GREEDY) == alone
    assert max(model_of(engine).walked) <= 70


@pytest.mark.parametrize("draft_tokens", [0, 2])
def test_long_chunks_that_go_another_way_change_nothing(
    tiny_v32: Path, alone: list[Generated], draft_tokens: int
) -> None:
    parts = local_parts(tiny_v32, draft_tokens=draft_tokens)
    limits = SchedulerLimits(max_sequences=8, chunk_tokens=64, max_step_tokens=190)
    engine = rows_engine(parts, limits, draft_tokens=draft_tokens, most_rows=24)
    assert generate(engine, prompts(), GREEDY) == alone
    spans, walked = model_of(engine).spans, model_of(engine).walked
    assert walked and max(walked) <= 24 and max(spans) == 64 and min(spans) >= SHORT_CHUNK


def test_short_chunks_go_the_other_way_where_they_are_too_many_for_a_graph(tiny_v32: Path) -> None:
    parts, some = local_parts(tiny_v32), [[20 + i] * (i + 1) for i in range(8)]
    limits = SchedulerLimits(max_sequences=8, chunk_tokens=64, max_step_tokens=190)
    engine = rows_engine(parts, limits, most_rows=20)
    assert generate(engine, some, GREEDY) == generate(engine_of(parts), some, GREEDY)
    assert max(model_of(engine).spans) == 8 and max(model_of(engine).walked) <= 20


def test_running_out_of_pages_and_beginning_alike_change_nothing(
    parts: tuple[Decoder, Exchange], alone: list[Generated]
) -> None:
    engine = rows_engine(parts, num_pages=6)
    assert generate(engine, prompts(), GREEDY) == alone
    assert engine.stats()["preemptions"] > 0
    had = engine.stats()["prefix_hit_tokens"]
    for _ in range(2):
        assert generate(engine, prompts()[:1], GREEDY) == alone[:1]
    assert engine.stats()["prefix_hit_tokens"] > had


@pytest.mark.parametrize("draft_tokens", [1, 3])
def test_drafts_by_rows_of_the_mtp_layer_change_nothing_and_are_the_plain_runners(
    tiny_v32: Path, alone: list[Generated], draft_tokens: int
) -> None:
    parts = local_parts(tiny_v32, draft_tokens=draft_tokens)
    engine, plain = rows_engine(parts, draft_tokens=draft_tokens), engine_of(parts, draft_tokens=draft_tokens)
    assert generate(engine, prompts(), GREEDY) == alone
    assert generate(plain, prompts(), GREEDY) == alone
    drafted = engine.counters.drafted, engine.counters.accepted
    assert drafted == (plain.counters.drafted, plain.counters.accepted)
    assert drafted[0][0] > 0


def test_a_past_that_nobody_followed_for_long_is_followed_in_parts(tiny_v32: Path) -> None:
    """Drafts too are those of the plain runner, which takes it all at once."""
    parts = local_parts(tiny_v32, draft_tokens=1)
    limits = SchedulerLimits(max_sequences=4, chunk_tokens=4, max_step_tokens=11)
    told = [
        rested(engine)
        for engine in (rows_engine(parts, limits, draft_tokens=1), engine_of(parts, limits, draft_tokens=1))
    ]
    assert told[0] == told[1] and any(drafts for _, drafts in told[0])


def rested(engine: Engine) -> list[tuple[list[int], list[int]]]:
    """(text, every draft) of requests whose drafting rests in the middle."""
    sampling = Sampling(max_tokens=22, temperature=0.0, ignore_eos=True)
    for i in range(4):
        engine.submit("test", str(i), [20 + i] * 9, [], sampling)
    sequences = engine._scheduler.waiting
    for sequence in sequences:
        sequence.pace.resting_tokens = 10
    drafts: list[list[int]] = [[] for _ in sequences]
    while engine.has_work:
        engine.step()
        for sequence, own in zip(sequences, drafts, strict=True):
            own += sequence.drafts
    return [(sequence.tokens, own) for sequence, own in zip(sequences, drafts, strict=True)]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=6, seed=3, logprobs=2, ignore_eos=True),
        Sampling(max_tokens=6, temperature=0.0, repetition_penalty=1.5, logprobs=0, ignore_eos=True),
        Sampling(max_tokens=6, temperature=0.0, logit_bias=((40, 50.0),), ignore_eos=True),
        Sampling(max_tokens=6, temperature=0.0, min_tokens=4, logprobs=1),
    ],
)
def test_what_asks_for_more_than_the_likeliest_token_gets_what_the_sampler_gives(
    parts: tuple[Decoder, Exchange], sampling: Sampling
) -> None:
    mixed = [sampling, GREEDY] * 4
    assert generate(rows_engine(parts), prompts(), mixed) == generate(engine_of(parts), prompts(), mixed)


def test_a_row_that_is_not_finite_ends_its_request_alone(tiny_v32: Path, alone: list[Generated]) -> None:
    parts = local_parts(tiny_v32)
    parts[0]._head.embedding_VD[15] = torch.nan  # of no prompt
    told = generate(rows_engine(parts), [*prompts(), [15] * 5], GREEDY)
    assert told[:-1] == alone
    assert told[-1].finish == "error"


# What an operator sees


@pytest.mark.parametrize("draft_tokens", [0, 2])
def test_the_load_of_experts_is_the_plain_runners_and_knows_no_padding(
    tiny_v32: Path, draft_tokens: int
) -> None:
    """Drafts go through an MTP layer with experts of its own."""
    told = []
    for make in (engine_of, rows_engine):
        engine = make(local_parts(tiny_v32, draft_tokens=draft_tokens), draft_tokens=draft_tokens)
        assert not engine.expert_pairs().any()
        generate(engine, prompts()[:3], GREEDY)
        told.append(
            (engine.expert_pairs(), {s.name: s.value for s in engine.samples() if s.labels == ("1",)})
        )
    assert engine.stats()["padding_rows"] > 0
    (plain_LE, plain), (rows_LE, rows) = told
    assert (plain_LE == rows_LE).all() and plain_LE.any(1).all()
    assert plain == rows and plain["shoal_expert_pairs_total"] == plain_LE[0].sum()


def test_a_recording_of_rows_changes_no_bit_tells_every_part_and_leaves_nothing_behind(
    tiny_v32: Path,
) -> None:
    parts = local_parts(tiny_v32, draft_tokens=1)
    engine = rows_engine(parts, draft_tokens=1, most_rows=24, prefix_cache=False)
    expected = generate(engine, prompts(), GREEDY)
    before = engine._runner._walked, engine.counters.laps
    recorder = Recorder(1000)
    engine.record(recorder)
    assert generate(engine, prompts(), GREEDY) == expected
    engine.record(None)
    assert (engine._runner._walked, engine.counters.laps) == before, "the same objects as before"
    count = len(recorder.spans)
    computed = {span.name for span in recorder.spans if span.lane == COMPUTE}
    assert computed >= {"layers", "layers, long chunks", "head and draw", "draft layer"}
    assert {span.name for span in recorder.spans if span.lane == LOOP} >= {"plan", "forward", "sample"}
    assert max(span.step for span in recorder.spans) > 5, "steps are numbered"
    generate(engine, prompts()[:1], GREEDY)
    assert len(recorder.spans) == count > 0


def test_the_experts_of_a_few_rows_are_told_and_are_those_that_were_counted(tiny_v32: Path) -> None:
    engine = rows_engine(local_parts(tiny_v32))
    recorder = Recorder(1000)
    engine.record(recorder)
    generate(engine, [[40, 41]], GREEDY)
    first_layer = engine._runner.exchange.view.first_layer
    for layer, pairs_E in enumerate(engine.expert_pairs(), first_layer):
        told = [span.experts for span in recorder.spans if span.name == "experts" and span.layer == layer]
        assert set().union(*told) == set(pairs_E.nonzero()[0].tolist()) != set()
    engine.record(None)


# The pieces


def model_of(engine: Engine) -> ReferenceRows:
    model: ReferenceRows = engine._runner._model  # type: ignore[attr-defined]
    return model


@given(st.integers(1, 3000))
def test_sizes_hold_every_number_of_rows_with_little_to_spare(most: int) -> None:
    for count in range(1, most + 1):
        size = size_for(most, count)
        assert size in sizes_up_to(most)
        assert count <= size <= most
        assert size < 2 * count and (count <= 32 or size <= 1.5 * count)


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=8), st.integers(1, 20))
def test_parts_hold_every_token_once_in_order_and_want_logits_where_the_chunk_ends(
    given_chunks: list[tuple[int, bool]], most: int
) -> None:
    chunks = [
        Chunk(token_ids=list(range(n)), start=7, pages=[i], wants_logits=wants)
        for i, (n, wants) in enumerate(given_chunks)
    ]
    parts = parts_of(chunks, most)
    assert all(0 < sum(len(chunk.token_ids) for chunk in part) <= most for part in parts)
    for i, chunk in enumerate(chunks):
        own = [one for part in parts for one in part if one.pages == [i]]
        assert [token for one in own for token in one.token_ids] == chunk.token_ids
        assert [one.start - 7 for one in own] == [one.token_ids[0] for one in own]
        assert [one.wants_logits for one in own] == [False] * (len(own) - 1) + [chunk.wants_logits]


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["use", "grow", "swap", "clear"])), max_size=60))
def test_the_device_knows_the_pages_of_whoever_is_asked_for(deeds: list[tuple[int, str]]) -> None:
    tables = PageTables(num_seats=3, num_pages=8, device=CPU)
    lists: list[list[int]] = [[i + 1] for i in range(6)]
    for i, deed in deeds:
        if deed == "grow" and len(lists[i]) < 8:
            lists[i].append(10 * i + len(lists[i]))
        elif deed == "swap" and lists[i]:
            lists[i][0] += 100
        elif deed == "clear":
            lists[i].clear()
        asked = [i, (i + 1) % 6, (i + 2) % 6]
        seats = [tables.seat(lists[one]) for one in asked]
        tables.send()
        assert len(set(seats)) == 3
        for one, seat in zip(asked, seats, strict=True):
            assert tables.pages_SP[seat, : len(lists[one])].tolist() == lists[one]


def test_rows_behind_the_last_have_no_token(parts: tuple[Decoder, Exchange]) -> None:
    config = parts[0].config
    buffers = RowBuffers(config, most_rows=6, most_draws=2, most_sequences=2, context_tokens=128, device=CPU)
    full = StepRows()
    full.add(Chunk(token_ids=[9] * 6, start=60, pages=[3, 5], wants_logits=True), seat=1)
    buffers.send(full, [5])
    assert buffers.of("slots", 6).tolist() == [*range(252, 256), 320, 321]
    assert buffers.of("lengths", 6).tolist() == [61, 62, 63, 64, 65, 66]
    one = StepRows()
    one.add(Chunk(token_ids=[8], start=64, pages=[3, 5], wants_logits=True), seat=0)
    one.pad(4)
    buffers.send(one, [0])
    assert buffers.of("slots", 4).tolist() == [320, -1, -1, -1]
    assert buffers.of("lengths", 4).tolist() == [65, 0, 0, 0]
    assert buffers.of("ids", 4).tolist() == [8, 0, 0, 0]
    assert buffers.places(1).tolist() == [0]


def test_pages_that_stay_on_their_gpu_are_neither_lent_nor_taken(parts: tuple[Decoder, Exchange]) -> None:
    sender = Sender(token=b"t", actor_id="attention-0", incarnation=1, maker="m")
    desk = HandoverDesk(rows_engine(parts), sender, announce=lambda: None)
    peer: Any = object()
    assert desk.come(peer, Offer(maker="m", keys=(b"k" * 16,)), memoryview(b""), 0.0) == Wanted(
        num_fit=0, places=()
    )
    desk.order(peer, HandOver(heirs=(("attention-1", 1, "127.0.0.1", 1),)))
    desk.expire(1.0)
    desk.forget(peer)
    assert desk.go_on(0.0) == {}
    assert {sample.value for sample in desk.samples()} == {0}
