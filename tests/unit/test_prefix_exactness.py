"""Promise 1 with the prefix cache: a hit changes neither a token nor a bit of a logprob, drafted or not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.engine import Engine
from actors.messages import FINISH_ERROR, TokenEvent
from actors.scheduler import SchedulerLimits
from actors.sequence import Sequence
from model.cache import PAGE_TOKENS
from model.decoder import Decoder
from model.sampling import Sampling
from router.exchange import Exchange
from tests.shoals import Generated, engine_of, generate, local_engine, local_parts

GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=0)
SAMPLED = replace(GREEDY, seed=9, temperature=1.2, top_p=0.95, logprobs=2)
Parts = tuple[Decoder, Exchange]


def text(seed: int, num_tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(16, 272, (num_tokens,), generator=generator).tolist()


LONG = [text(seed, 400) for seed in range(2)]


def prompt(base: int, kept: int, tail: int) -> list[int]:
    """The first `kept` tokens of one of the long texts, then others of its own."""
    return LONG[base][:kept] + text(1000 * kept + tail, tail)


class Kitchen:
    """One model, with and without the cache."""

    def __init__(self, parts: Parts, draft_tokens: int = 0) -> None:
        self.parts = parts
        self.draft_tokens = draft_tokens
        self._oracle = engine_of(parts, prefix_cache=False)

    def engine(self, num_pages: int = 128, chunk_tokens: int = 128) -> Engine:
        limits = SchedulerLimits(chunk_tokens=chunk_tokens, max_step_tokens=2 * chunk_tokens + 70)
        return engine_of(self.parts, limits, num_pages, self.draft_tokens)

    @cache  # noqa: B019 - lives as long as the module's fixtures
    def alone(self, base: int, kept: int, tail: int, sampling: Sampling) -> Generated:
        return generate(self._oracle, [prompt(base, kept, tail)], sampling)[0]


@pytest.fixture(scope="module")
def v32(tiny_v32: Path) -> Kitchen:
    return Kitchen(local_parts(tiny_v32))


@pytest.fixture(scope="module")
def v3(tiny_v3: Path) -> Kitchen:
    """Without an indexer."""
    return Kitchen(local_parts(tiny_v3))


@pytest.fixture(scope="module")
def bf16(tiny_v32: Path) -> Kitchen:
    return Kitchen(local_parts(tiny_v32, torch.bfloat16))


@pytest.fixture(scope="module")
def drafting(tiny_v32: Path) -> Kitchen:
    return Kitchen(local_parts(tiny_v32, draft_tokens=2), draft_tokens=2)


REQUEST = st.tuples(
    st.integers(0, 1),
    st.sampled_from([0, 63, 64, 65, 100, 128, 129, 192, 200, 256, 300]),
    st.sampled_from([1, 20, 64, 90]),
    st.sampled_from([GREEDY, SAMPLED]),
    st.sampled_from(["", "", "salt"]),
)
ROUNDS = st.lists(st.lists(REQUEST, min_size=1, max_size=5), min_size=2, max_size=4)
POOLS = st.sampled_from([9, 14, 128])  # the first two run out of pages


@pytest.mark.parametrize("kind", ["v32", "v3", "bf16", "drafting"])
def test_any_mixture_of_hits_equals_each_alone_without_a_cache(
    kind: str, request: pytest.FixtureRequest
) -> None:
    kitchen: Kitchen = request.getfixturevalue(kind)
    hits: list[float] = []

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(ROUNDS, POOLS, st.sampled_from([48, 64, 128]))
    def rounds_equal(rounds: list[list[tuple]], num_pages: int, chunk_tokens: int) -> None:
        engine = kitchen.engine(num_pages, chunk_tokens)
        for together in rounds:
            got = generate_salted(engine, together)
            assert got == [kitchen.alone(*asked) for *asked, _ in together]
        hits.append(engine.stats()["prefix_hit_tokens"])

    rounds_equal()
    assert sum(hits) > 0


def generate_salted(engine: Engine, together: list[tuple]) -> list[Generated]:
    for number, (base, kept, tail, sampling, salt) in enumerate(together):
        assert engine.submit("test", str(number), prompt(base, kept, tail), [], sampling, salt) is None
    results = [Generated([], [], None) for _ in together]
    for event in events_of(engine):
        had = results[int(event.request_id)]
        assert event.first == len(had.token_ids)
        results[int(event.request_id)] = Generated(
            had.token_ids + list(event.token_ids), had.logprobs + list(event.logprobs), event.finish
        )
    return results


def events_of(engine: Engine) -> list[TokenEvent]:
    """Everything that it says until it is idle."""
    events = []
    while engine.has_work:
        events += [event for own in engine.step().values() for event in own]
    return events


@pytest.mark.parametrize("kind", ["v32", "v3", "bf16", "drafting"])
def test_what_a_hit_reads_is_what_it_would_have_written(kind: str, request: pytest.FixtureRequest) -> None:
    """In every layer, the MTP layer's last slot of a page included, whatever came after it before."""
    kitchen: Kitchen = request.getfixturevalue(kind)
    shared = LONG[0][: 3 * PAGE_TOKENS]
    engine, fresh = kitchen.engine(), kitchen.engine()
    generate(engine, [[*shared, 20, 21, 22], [*shared[:PAGE_TOKENS], 30, 31]], GREEDY)
    asked = [*shared, 20, *text(5, 30)]
    other = [*shared, 40, *text(6, 30)]
    for tokens, hits in ((asked, 3 * PAGE_TOKENS), (other, 2 * PAGE_TOKENS)):
        sequence, entries = prefilled(engine, tokens)
        assert sequence.num_cached == hits
        assert torch.equal(entries, prefilled(fresh, tokens)[1])


def prefilled(engine: Engine, tokens: list[int]) -> tuple[Sequence, Tensor]:
    """The sequence with its first token, and all that the cache holds of its prompt; then it is cancelled."""
    engine.submit("test", "r", tokens, [], GREEDY)
    [sequence] = engine._scheduler.waiting
    while not sequence.num_emitted:
        engine.step()
    places = range(len(tokens) - 1)
    slots = [sequence.pages[place // PAGE_TOKENS] * PAGE_TOKENS + place % PAGE_TOKENS for place in places]
    cached = [*engine._cache.latent_SC, *engine._cache.index_SI]
    entries = torch.cat([slots_SX[slots] for slots_SX in cached], 1)
    engine.cancel("test", "r")
    return sequence, entries


@pytest.mark.parametrize("kind", ["v32", "drafting"])
@pytest.mark.parametrize("max_tokens", [1, 2, 70])
def test_every_full_page_of_what_has_ended_is_found(
    kind: str, max_tokens: int, request: pytest.FixtureRequest
) -> None:
    """However short the answer, and though drafting rests."""
    kitchen: Kitchen = request.getfixturevalue(kind)
    engine = kitchen.engine()
    told = replace(GREEDY, max_tokens=max_tokens)
    asked = text(7, 3 * PAGE_TOKENS)
    [said] = generate(engine, [asked], told)
    whole = [*asked, *said.token_ids]
    [event, *_] = events_with(engine, [*whole, 20])
    assert event.num_cached == len(whole) // PAGE_TOKENS * PAGE_TOKENS


def events_with(engine: Engine, tokens: list[int]) -> list[TokenEvent]:
    engine.submit("test", "r", tokens, [], GREEDY)
    return events_of(engine)


def test_drafts_after_a_hit_are_those_without() -> None:
    """The embedded model, whose drafts hold: as many are made and accepted."""
    checkpoint = Path(__file__).parents[2] / "demo" / "checkpoint"
    kitchen = Kitchen(local_parts(checkpoint, draft_tokens=1), draft_tokens=1)
    engine = kitchen.engine()
    rng, told = Random(3), replace(GREEDY, max_tokens=20)
    asked = [rng.randrange(16, 300) for _ in range(2 * PAGE_TOKENS + 9)]
    counts, said = [], []
    for _ in range(2):
        before = (sum(engine.counters.drafted), sum(engine.counters.accepted))
        said += generate(engine, [asked], told)
        after = (sum(engine.counters.drafted), sum(engine.counters.accepted))
        counts.append((after[0] - before[0], after[1] - before[1]))
    assert said[0] == said[1]
    assert counts[0] == counts[1]
    assert counts[0][1] > 0
    assert engine.stats()["prefix_hit_tokens"] == 2 * PAGE_TOKENS


def test_pages_that_a_poisoned_sequence_wrote_are_found_by_nobody(tiny_v32: Path) -> None:
    engine = local_engine(tiny_v32)
    embedding = engine._decoder._head.embedding_VD
    sane = embedding[40].clone()
    embedding[40] = float("nan")
    poisoned = [*text(8, 100), 40, *text(9, 100)]
    [event] = events_with(engine, poisoned)
    assert (event.finish, event.num_cached) == (FINISH_ERROR, None)
    assert engine.stats()["cached_pages"] == 0
    embedding[40] = sane
    healed = events_with(engine, poisoned)
    assert healed[0].num_cached == 0
    assert healed[-1].finish == "length"
    assert events_with(engine, poisoned)[0].num_cached == 3 * PAGE_TOKENS


def test_pages_that_are_taken_again_hold_nothing_of_the_last_owner(v32: Kitchen) -> None:
    engine = v32.engine(num_pages=8)
    for seed in range(4):  # more than fits: pages of the first are evicted
        generate(engine, [text(50 + seed, 150)], GREEDY)
    assert engine.stats()["evicted_pages"] > 0
    for slots_SX in (*engine._cache.latent_SC, *engine._cache.index_SI):
        for page in (*engine._pool._free, *engine._pool._names):
            slots_SX[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS][60:] *= 1.0
    free = engine._pool._free[-1]
    engine._cache.latent_SC[0][free * PAGE_TOKENS :][:PAGE_TOKENS] = float("nan")
    oldest = next(iter(engine._pool._idle))
    engine._cache.latent_SC[0][oldest * PAGE_TOKENS :][:PAGE_TOKENS] = float("nan")
    expected = generate(engine_of(v32.parts, prefix_cache=False), [text(60, 400)], GREEDY)
    assert generate(engine, [text(60, 400)], GREEDY) == expected


def test_switched_off_nothing_is_kept(v32: Kitchen) -> None:
    engine = engine_of(v32.parts, prefix_cache=False)
    for _ in range(2):
        assert events_with(engine, LONG[0])[0].num_cached is None
    assert "prefix_hit_tokens" not in engine.stats()
    assert engine._pool.num_published == 0


def test_a_resumed_sequence_shares_pages_and_tells_nothing_again(v32: Kitchen) -> None:
    engine = v32.engine()
    [whole] = generate(engine, [LONG[0][:200]], GREEDY)
    assert engine.submit("test", "again", LONG[0][:200], whole.token_ids[:3], GREEDY) is None
    events = events_of(engine)
    assert [token for event in events for token in event.token_ids] == whole.token_ids[3:]
    assert {event.num_cached for event in events} == {None}
    assert engine.stats()["prefix_hit_tokens"] == 3 * PAGE_TOKENS
