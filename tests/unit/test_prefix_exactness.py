"""Promise 1 with the prefix cache: a hit changes neither a token nor a bit of a logprob, drafted or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.engine import Engine
from actors.messages import FINISH_ERROR, FINISH_LENGTH, Terms, TokenEvent
from actors.scheduler import SchedulerLimits
from actors.sequence import Sequence
from model.cache import PAGE_TOKENS
from model.decoder import Decoder
from model.sampling import Sampling
from router.exchange import Exchange
from tests.shoals import engine_of, generate, local_engine, local_parts

GREEDY = Sampling(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=0)
SAMPLED = replace(GREEDY, seed=9, temperature=1.2, top_p=0.95, logprobs=2)
Parts = tuple[Decoder, Exchange]
Round = list[tuple[int, int, Sampling, str]]
Answer = list[tuple[int, float, object]]


def text(seed: int, num_tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(16, 272, (num_tokens,), generator=generator).tolist()


LONG = text(0, 150)


def prompt(kept: int, tail: int) -> list[int]:
    """The first `kept` tokens of the long text, then others of its own."""
    return LONG[:kept] + text(1000 * kept + tail, tail)


class Kitchen:
    """One model, with and without the cache."""

    def __init__(self, parts: Parts, draft_tokens: int = 0) -> None:
        self.parts = parts
        self.draft_tokens = draft_tokens
        self.oracle = engine_of(parts, prefix_cache=False)

    def engine(self, num_pages: int = 128, chunk_tokens: int = 128) -> Engine:
        limits = SchedulerLimits(chunk_tokens=chunk_tokens, max_step_tokens=2 * chunk_tokens + 70)
        return engine_of(self.parts, limits, num_pages, self.draft_tokens)


@pytest.fixture(scope="module")
def kitchens(tiny_v32: Path, tiny_v3: Path) -> dict[str, Kitchen]:
    return {
        "fp32": Kitchen(local_parts(tiny_v32)),
        "bf16": Kitchen(local_parts(tiny_v32, torch.bfloat16)),
        "without indexer": Kitchen(local_parts(tiny_v3)),
        "drafts": Kitchen(local_parts(tiny_v32, draft_tokens=2), draft_tokens=2),
        "drafts without indexer": Kitchen(local_parts(tiny_v3, draft_tokens=2), draft_tokens=2),
    }


KINDS = ("fp32", "bf16", "without indexer", "drafts", "drafts without indexer")
REQUEST = st.tuples(
    st.sampled_from([0, 63, 64, 65, 100, 128, 129]),
    st.sampled_from([1, 20]),
    st.sampled_from([GREEDY, SAMPLED]),
    st.sampled_from(["", "", "salt"]),
)
ROUNDS = st.lists(st.lists(REQUEST, min_size=1, max_size=4), min_size=2, max_size=2)
POOLS = st.sampled_from([4, 7, 128])  # the first two run out of pages


@settings(max_examples=4, deadline=None)
@given(st.sampled_from(KINDS), ROUNDS, POOLS, st.sampled_from([48, 64, 128]))
def test_any_mixture_of_hits_is_answered_as_without_a_cache(
    kitchens: dict[str, Kitchen], kind: str, rounds: list[Round], num_pages: int, chunk_tokens: int
) -> None:
    kitchen = kitchens[kind]
    engine = kitchen.engine(num_pages, chunk_tokens)
    for asked in rounds:
        assert answers(engine, asked) == answers(kitchen.oracle, asked)


def answers(engine: Engine, asked: Round) -> dict[str, Answer]:
    """Token ids with all that is told of them, by request."""
    for number, (kept, tail, sampling, salt) in enumerate(asked):
        assert (
            engine.submit("test", str(number), prompt(kept, tail), [], sampling, Terms(cache_salt=salt))
            is None
        )
    told: dict[str, Answer] = {str(number): [] for number in range(len(asked))}
    for event in events_of(engine):
        told[event.request_id] += zip(
            event.token_ids, event.logprobs, event.top or event.logprobs, strict=True
        )
    return told


def events_of(engine: Engine) -> list[TokenEvent]:
    """Everything that it says until it is idle."""
    events = []
    while engine.has_work:
        events += [event for own in engine.step().values() for event in own]
    return events


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_hit_reads_is_what_it_would_have_written(kitchens: dict[str, Kitchen], kind: str) -> None:
    """In every layer, the MTP layer's last slot of a page included, whatever came after it before."""
    kitchen = kitchens[kind]
    shared = LONG[: 2 * PAGE_TOKENS]
    engine, fresh = kitchen.engine(), kitchen.engine()
    generate(engine, [[*shared, 20, 21, 22], [*shared[:PAGE_TOKENS], 30]], GREEDY)
    asked = [*shared, 20, *text(5, 30)]
    other = [*shared, 40, *text(6, 30)]
    for tokens, hits in ((asked, 2 * PAGE_TOKENS), (other, PAGE_TOKENS)):
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
    cached = [*engine._runner.cache.latent_SC, *engine._runner.cache.index_SI]
    entries = torch.cat([slots_SX[slots] for slots_SX in cached], 1)
    engine.cancel("test", "r")
    return sequence, entries


@pytest.mark.parametrize("kind", ["fp32", "drafts"])
@pytest.mark.parametrize("max_tokens", [1, 30])
def test_every_full_page_of_what_has_ended_is_found(
    kitchens: dict[str, Kitchen], kind: str, max_tokens: int
) -> None:
    """However short the answer, and though drafting rests."""
    engine = kitchens[kind].engine()
    told = replace(GREEDY, max_tokens=max_tokens)
    asked = text(7, 2 * PAGE_TOKENS - 29 + (max_tokens < 30) * 29)
    [said] = generate(engine, [asked], told)
    whole = [*asked, *said.token_ids]
    [event, *_] = events_with(engine, [*whole, 20])
    assert event.num_cached == (len(whole) - 1) // PAGE_TOKENS * PAGE_TOKENS


def events_with(engine: Engine, tokens: list[int]) -> list[TokenEvent]:
    engine.submit("test", "r", tokens, [], GREEDY)
    return events_of(engine)


@pytest.mark.parametrize("kind", ["fp32", "drafts"])
def test_pages_are_found_while_the_prompt_is_still_computed(kitchens: dict[str, Kitchen], kind: str) -> None:
    engine = kitchens[kind].engine(chunk_tokens=PAGE_TOKENS)
    engine.submit("test", "r", text(11, 200), [], replace(GREEDY, max_tokens=1))
    for num_steps in range(1, 4):
        engine.step()
        assert engine.stats()["cached_pages"] == num_steps


def test_a_page_that_the_mtp_layer_has_not_read_is_found_when_it_has(kitchens: dict[str, Kitchen]) -> None:
    engine, fresh = kitchens["drafts"].engine(), kitchens["drafts"].engine()
    engine.submit("test", "r", text(12, 50), [], replace(GREEDY, max_tokens=30))
    [sequence] = engine._scheduler.waiting
    sequence.pace.resting_tokens = 100
    while sequence.finish is None:
        assert engine.stats()["cached_pages"] == 0
        engine.step()
    asked = [*sequence.tokens, 20]
    found, entries = prefilled(engine, asked)
    assert found.num_cached == PAGE_TOKENS
    assert torch.equal(entries, prefilled(fresh, asked)[1])


def test_drafts_after_a_hit_are_those_without() -> None:
    """The embedded model, whose drafts hold: as many are made and accepted."""
    checkpoint = Path(__file__).parents[2] / "demo" / "checkpoint"
    kitchen = Kitchen(local_parts(checkpoint, draft_tokens=1), draft_tokens=1)
    engine = kitchen.engine()
    rng, told = Random(3), replace(GREEDY, max_tokens=12)
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


def test_pages_that_a_poisoned_sequence_wrote_are_found_by_nobody(tiny_v3: Path) -> None:
    engine = local_engine(tiny_v3)
    embedding = engine._runner.decoder._head.embedding_VD
    sane = embedding[40].clone()
    embedding[40] = float("nan")
    poisoned = [*text(8, 70), 40, *text(9, 70)]
    [event] = events_with(engine, poisoned)
    assert (event.finish, event.num_cached) == (FINISH_ERROR, None)
    assert engine.stats()["cached_pages"] == 0
    embedding[40] = sane
    healed = events_with(engine, poisoned)
    assert (healed[0].num_cached, healed[-1].finish) == (0, FINISH_LENGTH)
    assert events_with(engine, poisoned)[0].num_cached == 2 * PAGE_TOKENS


def test_tenants_share_nothing(kitchens: dict[str, Kitchen]) -> None:
    engine = kitchens["fp32"].engine()
    cached = []
    for tenant, salt in (("a", ""), ("a", ""), ("b", ""), ("", "a"), ("", "")):
        engine.submit("test", "r", LONG, [], GREEDY, Terms(tenant=tenant, cache_salt=salt))
        cached.append(events_of(engine)[0].num_cached)
    assert cached == [0, (len(LONG) - 1) // PAGE_TOKENS * PAGE_TOKENS, 0, 0, 0]


def test_a_token_that_spoils_a_prompt_beyond_index_topk_ends_its_own_sequence_alone(tiny_v32: Path) -> None:
    engine, bystander = local_engine(tiny_v32), text(4, 90)
    [alone] = generate(engine, [bystander], GREEDY)
    engine._runner.decoder._head.embedding_VD[40] = float("nan")
    spoiled, beside = generate(engine, [[*text(8, 70), 40, *text(9, 70)], bystander], GREEDY)
    assert spoiled.finish == FINISH_ERROR
    assert beside == alone


@pytest.mark.parametrize("kind", ["fp32", "without indexer"])
def test_nothing_that_a_page_held_before_shows(kitchens: dict[str, Kitchen], kind: str) -> None:
    """Evicted or free: a NaN would pass the mask of slots that are not seen."""
    kitchen = kitchens[kind]
    engine = kitchen.engine(num_pages=6)
    for seed in range(2):
        generate(engine, [text(50 + seed, 140)], GREEDY)
    stale = [*engine._pool._free, *engine._pool._idle]
    assert len(stale) == 5
    for page in stale:
        for slots_SX in (*engine._runner.cache.latent_SC, *engine._runner.cache.index_SI):
            slots_SX[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS] = float("nan")
    asked = text(60, 130)
    assert generate(engine, [asked], GREEDY) == generate(kitchen.oracle, [asked], GREEDY)
    assert engine.stats()["evicted_pages"] > 0


def test_switched_off_nothing_is_kept(kitchens: dict[str, Kitchen]) -> None:
    engine = kitchens["fp32"].oracle
    for _ in range(2):
        assert events_with(engine, LONG)[0].num_cached is None
    assert "prefix_hit_tokens" not in engine.stats()
    assert engine._pool.num_published == 0


def test_a_resumed_sequence_shares_pages_and_tells_nothing_again(kitchens: dict[str, Kitchen]) -> None:
    engine = kitchens["fp32"].engine()
    [whole] = generate(engine, [LONG[:130]], GREEDY)
    assert engine.submit("test", "again", LONG[:130], whole.token_ids[:3], GREEDY) is None
    events = events_of(engine)
    assert [token for event in events for token in event.token_ids] == whole.token_ids[3:]
    assert {event.num_cached for event in events} == {None}
    assert engine.stats()["prefix_hit_tokens"] == 2 * PAGE_TOKENS
