"""Two micro-batches: the same text, and a choice that measuring makes."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.engine import Engine
from actors.overlap import LEAST_GAIN, LEAST_ROWS, LONGEST_REST, PAIRS, Overlap
from actors.scheduler import SchedulerLimits
from actors.step import in_turns
from model.decoder import Decoder
from model.sampling import Sampling
from router.exchange import Exchange
from tests.shoals import Generated, engine_of, generate, local_parts, tcp_engine

GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=0)
SAMPLED = Sampling(max_tokens=6, seed=7, temperature=1.0, ignore_eos=True, logprobs=2)
LENGTHS = (100, 3, 33, 64, 65, 31, 1, 128, 129, 17, 200, 48)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(16, 272, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def parts(tiny_v32: Path) -> tuple[Decoder, Exchange]:
    return local_parts(tiny_v32, draft_tokens=1)


@pytest.fixture(scope="module")
def alone(parts: tuple[Decoder, Exchange]) -> list[Generated]:
    """Every prompt by itself, one batch, nothing drafted."""
    engine = engine_of(parts)
    return [generate(engine, [prompt], SAMPLED)[0] for prompt in prompts()]


def has_split(engine: Engine) -> bool:
    return engine.stats()["split_steps"] > 0


@pytest.mark.parametrize("draft_tokens", [0, 1])
@pytest.mark.parametrize("chunk_tokens", [16, 128])
def test_text_is_the_same_with_two_micro_batches(
    parts: tuple[Decoder, Exchange], alone: list[Generated], chunk_tokens: int, draft_tokens: int
):
    limits = SchedulerLimits(chunk_tokens=chunk_tokens)
    engine = engine_of(parts, limits=limits, draft_tokens=draft_tokens, micro_batches=2)
    assert generate(engine, prompts(), SAMPLED) == alone
    assert has_split(engine)


def test_a_prompt_that_is_cut_in_its_middle_has_the_same_text(parts: tuple[Decoder, Exchange]):
    """Its first half is ahead in every layer, so that the second finds it in the cache."""
    for prompt in prompts()[-3:]:
        engine = engine_of(parts, micro_batches=2)
        assert generate(engine, [prompt], GREEDY) == generate(engine_of(parts), [prompt], GREEDY)
        assert has_split(engine)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_other_dtypes_have_the_same_text_too(tiny_v32: Path, dtype: torch.dtype):
    some, parts = prompts()[:5], local_parts(tiny_v32, dtype)
    assert generate(engine_of(parts, micro_batches=2), some, GREEDY) == generate(
        engine_of(parts), some, GREEDY
    )


def test_over_sockets_the_text_is_the_same_too(tiny_v32: Path, alone: list[Generated]):
    with tcp_engine(tiny_v32, 3, 2, draft_tokens=1, micro_batches=2) as engine:
        assert generate(engine, prompts(), SAMPLED) == alone
        assert has_split(engine)


def test_where_one_walk_pauses_the_next_goes_on_and_the_first_is_always_ahead():
    seen: list[tuple[str, int]] = []

    def walk(name: str, stops: int):
        for stop in range(stops):
            seen.append((name, stop))
            yield
        return name

    assert in_turns([walk("a", 3), walk("b", 3)]) == ["a", "b"]
    assert seen == [(name, stop) for stop in range(3) for name in "ab"]


# What measuring makes of it


def run(overlap: Overlap, steps: int, seconds: dict[int, float], num_rows: int = 40) -> list[int]:
    """What was chosen for steps that take so long with one batch and with two."""
    chosen = []
    for _ in range(steps):
        chosen.append(overlap.choose(num_rows))
        overlap.note(num_rows, chosen[-1], seconds[chosen[-1]])
    return chosen


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_what_is_told_is_done_whatever_it_costs(micro_batches: int):
    overlap = Overlap(micro_batches)  # type: ignore[arg-type]
    assert set(run(overlap, 500, {micro_batches: 9.0, 3 - micro_batches: 1.0})) == {micro_batches}


def test_too_few_rows_are_one_batch():
    for overlap in (Overlap(2), Overlap("auto")):
        assert set(run(overlap, 500, {1: 9.0, 2: 1.0}, num_rows=LEAST_ROWS - 1)) == {1}


def test_the_quicker_way_is_found_kept_and_left_when_it_is_no_more():
    overlap = Overlap("auto")
    assert run(overlap, 500, {1: 1.0, 2: 0.5})[-1] == 2
    kept = run(overlap, 4000, {1: 1.0, 2: 0.5})
    assert kept.count(1) <= 6 * PAIRS, "trials become rare"
    assert run(overlap, 2 * LONGEST_REST, {1: 0.5, 2: 1.0})[-1] == 1
    assert overlap.changes == 2


def test_sizes_are_judged_apart():
    overlap = Overlap("auto")
    run(overlap, 500, {1: 1.0, 2: 0.5}, num_rows=64)
    run(overlap, 500, {1: 0.5, 2: 1.0}, num_rows=16)
    assert (overlap.choose(64), overlap.choose(16)) == (2, 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.floats(1.0, LEAST_GAIN - 0.01))
def test_what_differs_less_than_the_noise_changes_nothing(seed: int, gain: float):
    """Nor do a few steps that took far too long."""
    overlap, random = Overlap("auto"), Random(seed)
    for _ in range(2000):
        chosen = overlap.choose(40)
        outlier = 50.0 if random.random() < 0.02 else 0.0
        overlap.note(40, chosen, (1.0 if chosen == 2 else gain) + outlier)
    assert overlap.changes == 0
