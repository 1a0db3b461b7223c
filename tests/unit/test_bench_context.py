"""The benchmark over contexts: every system at every context, on a past that is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

import actors.runner
from actors.engine import Engine
from bench.context import DENSE, DSA, drawn_past, make_engines, measure
from bench.context_report import CHUNK_TOKENS, Plan, Point, table
from bench.machine import peak_memory
from model.batch import Chunk, build_batch
from model.cache import LatentCache
from model.checkpoint import Checkpoint
from model.memory import cache_values_per_token
from tests.shoals import local_parts

PLAN = Plan(contexts=(512, 768), rounds=2, tokens=2)
SLOT_BYTES = 4


@pytest.fixture(scope="module")
def engines(tiny_v32: Path) -> dict[str, Engine]:
    return make_engines(Checkpoint.open(tiny_v32), PLAN.contexts[-1])


@pytest.fixture(scope="module")
def points(engines: dict[str, Engine]) -> list[Point]:
    return measure(engines, PLAN, lambda what: None)


def test_every_system_takes_the_planned_turns_at_every_context(points: list[Point]) -> None:
    assert [(one.context, one.system) for one in points] == [
        (context, system) for context in PLAN.contexts for system in (DSA, DENSE)
    ]
    for one in points:
        assert [len(burst) for burst in one.prefill] == [1] * PLAN.rounds
        assert [len(burst) for burst in one.decode] == [PLAN.tokens] * PLAN.rounds
        assert min(one.tpot_ms, one.prefill_tokens_per_s) > 0
        assert 0 <= one.index_ms < one.tpot_ms
        assert one.peak_bytes is None or one.peak_bytes > 0
        assert bool(one.index_s) == (one.system == DSA)  # the other has no keys to choose


def test_each_prompt_goes_on_from_the_one_before(engines: dict[str, Engine], points: list[Point]) -> None:
    """All but the pages that are gone on from otherwise, and they are left when the turns are over."""
    for engine in engines.values():
        stats = engine.stats()
        prompts = [context - PLAN.decoded for context in PLAN.contexts]
        assert stats["prefix_hit_tokens"] + stats["prefill_tokens"] == sum(prompts)
        assert stats["prefix_hit_tokens"] > prompts[0] - CHUNK_TOKENS
        assert not engine.has_work


def test_bytes_per_token_are_the_formulas(tiny_v32: Path, points: list[Point]) -> None:
    config = Checkpoint.open(tiny_v32).config_to_serve(draft_tokens=0)
    assert points[0].bytes_per_token == cache_values_per_token(config) * SLOT_BYTES
    assert config.indexer is not None
    index_bytes = config.indexer.head_dim * config.num_layers * SLOT_BYTES
    assert points[1].bytes_per_token == points[0].bytes_per_token - index_bytes


def test_the_table_shows_every_context(points: list[Point]) -> None:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table(points))
    assert all(f"{context:,}" in capture.get() for context in PLAN.contexts)


def test_a_drawn_past_is_as_large_as_norms_make_it_and_only_where_the_tokens_are(tiny_v32: Path) -> None:
    decoder, exchange = local_parts(tiny_v32)
    cache = LatentCache(decoder.config, 8, torch.float32)
    chunks = [Chunk(token_ids=[1] * 200, start=0, pages=[5, 2, 7, 3], wants_logits=False)]
    batch = build_batch(chunks, index_topk=32)
    with drawn_past():
        hidden_TD = actors.runner.forward(decoder, chunks, cache, exchange, 1)
    assert hidden_TD.shape == (200, decoder.config.hidden_size)
    for slots_SX in (*cache.latent_SC, *cache.index_SI):
        assert slots_SX[batch.slots_T].std() == pytest.approx(1.0, abs=0.1)
        assert slots_SX.abs().sum(-1).count_nonzero() == 200


def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    with peak_memory() as peak:
        torch.ones(64 << 20, dtype=torch.int8)
    assert not peak or 60 << 20 < peak[0] < 120 << 20
