"""Prompts go where their beginnings went, unless too many would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from ingress.affinity import LOAD_FACTOR, LOAD_SLACK, Affinity, marks_of
from ingress.engine_client import EngineClient
from model.sampling import Sampling
from tests.unit.loopback_engine import LoopbackEngine
from tests.unit.test_link import closed, make_engine, until

LOADS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 30), min_size=1)


@settings(deadline=None)
@given(LOADS, st.sampled_from("abcdef"), st.integers(64, 700))
def test_the_holder_is_chosen_unless_it_is_overloaded_and_then_the_least_busy(
    loads: dict[str, int], holder: str, num_tokens: int
):
    affinity = Affinity()
    marks = marks_of([7] * num_tokens, "")
    affinity.note(marks, holder)
    chosen = affinity.choose(marks, num_tokens, loads)
    mean = (sum(loads.values()) + 1) / len(loads)
    if holder in loads and loads[holder] < LOAD_FACTOR * mean + LOAD_SLACK:
        assert chosen == holder
    else:
        assert (loads[chosen], chosen) == min((load, actor) for actor, load in loads.items())


def test_the_longest_known_beginning_decides_and_a_small_part_does_not():
    affinity, idle = Affinity(), {"a": 0, "b": 0, "c": 0}

    def choose(ids: Sequence[int], salt: str = "") -> str:
        return affinity.choose(marks_of(ids, salt), len(ids), idle)

    affinity.note(marks_of([7] * 1000, ""), "b")
    affinity.note(marks_of([7] * 300 + [8] * 700, ""), "c")
    assert choose([7] * 1000) == "b"
    assert choose([7] * 300 + [8] * 400) == "c"
    assert choose([7] * 300 + [9] * 100) == "c", "who saw it last"
    assert choose([7] * 256 + [9] * 1000) == "a"
    assert choose([7] * 63) == "a"
    assert choose([7] * 1000, "salt") == "a"


def test_it_forgets_what_was_used_least_recently():
    affinity, idle = Affinity(max_marks=4), {"a": 0, "b": 0}
    old, young = marks_of([1] * 128, ""), marks_of([2] * 128, "")
    affinity.note(old, "b")
    affinity.note(young, "b")
    affinity.note(old, "b")
    affinity.note(marks_of([3] * 128, ""), "b")
    assert len(affinity) == 4
    assert affinity.choose(old, 128, idle) == "b"
    assert affinity.choose(young, 128, idle) == "a"


def test_requests_follow_their_prompts_to_the_actor_and_away_from_one_that_is_gone():
    async def scenario() -> None:
        actors = [LoopbackEngine(actor_id=name) for name in "abc"]
        for actor in actors:
            await actor.start()
        engine = make_engine(*actors)
        engine.start()
        await until(lambda: len(engine._candidates()) == 3)
        await ask(engine, [5] * 70)
        actors[0].mute = True
        waiting = asyncio.create_task(ask(engine, [6] * 10))  # the lowest id is busy now
        await until(lambda: len(actors[0].submits) == 2)
        said = await ask(engine, [7] * 200)
        assert len(actors[1].submits) == 1
        actors[0].mute = False
        await waiting
        for _ in range(3):
            await ask(engine, [7] * 200)
        await ask(engine, [7] * 200 + said + [8] * 400)
        assert len(actors[1].submits) == 5, "with what was said the known beginning is long enough"
        together = [asyncio.create_task(ask(engine, [9] * 100, str(name))) for name in range(2)]
        assert len(await asyncio.gather(*together)) == 2
        assert len(actors[0].submits) == 4, "the second while the first is being answered"
        await actors[1].stop()
        await until(lambda: len(engine._candidates()) == 2)
        assert len(await ask(engine, [7] * 200)) == 100
        await closed(engine, *actors)

    asyncio.run(scenario())


async def ask(engine: EngineClient, prompt: list[int], name: str = "r") -> list[int]:
    told = Sampling(max_tokens=100, ignore_eos=True)
    return [token async for event in engine.generate(name, prompt, told) for token in event.token_ids]


def test_without_a_cache_only_load_counts():
    async def scenario() -> None:
        actors = [LoopbackEngine(actor_id=name) for name in "ab"]
        for actor in actors:
            await actor.start()
        engine = EngineClient(
            [actor.endpoint for actor in actors], token=actors[0].token, identity="d", prefix_cache=False
        )
        engine.start()
        await until(lambda: len(engine._candidates()) == 2)
        actors[0].mute = True
        waiting = asyncio.create_task(ask(engine, [7] * 200))
        await until(lambda: len(actors[0].submits) == 1)
        await ask(engine, [7] * 200)
        assert len(actors[1].submits) == 1
        actors[0].mute = False
        await waiting
        await closed(engine, *actors)

    asyncio.run(scenario())
