"""Promise 1: the greedy text and its logprobs do not depend on anything but the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import model.indexer
from actors.messages import Terms
from actors.scheduler import SchedulerLimits
from model.decoder import Decoder
from model.sampling import Sampling
from router.exchange import Exchange
from tests.shoals import Generated, engine_of, generate, local_parts, prompts_of, tcp_engine

GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=0)
LENGTHS = (100, 3, 33, 64, 65, 31, 32, 1, 128, 129, 17, 96, 200, 48, 7, 2)


def prompts() -> list[list[int]]:
    return prompts_of(LENGTHS)


@pytest.fixture(scope="module")
def parts(tiny_v32: Path) -> tuple[Decoder, Exchange]:
    return local_parts(tiny_v32)


@pytest.fixture(scope="module")
def alone(parts: tuple[Decoder, Exchange]) -> list[Generated]:
    """The oracle: every prompt by itself, local experts, the default chunk size."""
    engine = engine_of(parts)
    return [generate(engine, [prompt], GREEDY)[0] for prompt in prompts()]


def test_a_model_without_indexer_keeps_its_bits_too(tiny_v3: Path) -> None:
    some, dense = prompts()[:5], local_parts(tiny_v3)
    engine = engine_of(dense)
    expected = [generate(engine, [prompt], GREEDY)[0] for prompt in some]
    assert generate(engine_of(dense, limits=SchedulerLimits(chunk_tokens=16)), some, GREEDY) == expected
    with tcp_engine(tiny_v3, 2, 2) as remote:
        assert generate(remote, some, GREEDY) == expected


def test_sixteen_mixed_lengths_together_equal_each_alone(
    parts: tuple[Decoder, Exchange], alone: list[Generated]
) -> None:
    assert generate(engine_of(parts), prompts(), GREEDY) == alone


@pytest.mark.parametrize("chunk_tokens", [16, 32, 64])
def test_the_chunk_size_of_prefill_changes_nothing(
    parts: tuple[Decoder, Exchange], alone: list[Generated], chunk_tokens: int
) -> None:
    limits = SchedulerLimits(chunk_tokens=chunk_tokens)
    assert generate(engine_of(parts, limits=limits), prompts(), GREEDY) == alone


@pytest.mark.parametrize(("num_actors", "replicas"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2)])
def test_experts_over_sockets_equal_local_ones(
    tiny_v32: Path, alone: list[Generated], num_actors: int, replicas: int
) -> None:
    with tcp_engine(tiny_v32, num_actors, replicas) as engine:
        assert generate(engine, prompts(), GREEDY) == alone


def test_a_past_of_many_tiles_changes_nothing(
    parts: tuple[Decoder, Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a core's cache held the index keys of a page only; contexts that fill real tiles take long."""
    monkeypatch.setattr(model.indexer, "TILE_VALUES", 1)
    some, engine = prompts()[-4:], engine_of(parts)
    alone = [generate(engine, [prompt], GREEDY)[0] for prompt in some]
    assert generate(engine_of(parts, limits=SchedulerLimits(chunk_tokens=16)), some, GREEDY) == alone
    assert generate(engine_of(parts, num_pages=6), some, GREEDY) == alone


def test_running_out_of_pages_changes_nothing(
    parts: tuple[Decoder, Exchange], alone: list[Generated]
) -> None:
    engine = engine_of(parts, num_pages=10)
    assert generate(engine, prompts(), GREEDY) == alone


def test_whose_turn_it_is_and_who_gives_way_changes_nothing(
    parts: tuple[Decoder, Exchange], alone: list[Generated]
) -> None:
    limits = SchedulerLimits(max_sequences=3, chunk_tokens=32, max_step_tokens=64)
    engine = engine_of(parts, num_pages=6, limits=limits)
    terms = [Terms(is_batch=True), Terms(tenant="a"), Terms(tenant="b")]
    assert generate(engine, prompts(), GREEDY, terms) == alone
    assert engine.stats()["preemptions"] > 0


def test_a_sequence_resumed_elsewhere_goes_on_with_the_same_tokens(
    parts: tuple[Decoder, Exchange], alone: list[Generated]
) -> None:
    engine = engine_of(parts)
    for prompt, whole in zip(prompts()[:5], alone, strict=False):
        assert engine.submit("test", "again", prompt, whole.token_ids[:4], GREEDY) is None
        tokens: list[int] = []
        while engine.has_work:
            for events in engine.step().values():
                for event in events:
                    assert event.first == 4 + len(tokens)
                    tokens += event.token_ids
        assert tokens == whole.token_ids[4:]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_other_dtypes_equal_each_alone_too(tiny_v32: Path, dtype: torch.dtype) -> None:
    some, parts = prompts()[:5], local_parts(tiny_v32, dtype)
    one = engine_of(parts)
    expected = [generate(one, [prompt], GREEDY)[0] for prompt in some]
    assert generate(engine_of(parts, limits=SchedulerLimits(chunk_tokens=16)), some, GREEDY) == expected
    with tcp_engine(tiny_v32, 2, 1, dtype) as remote:
        assert generate(remote, some, GREEDY) == expected
