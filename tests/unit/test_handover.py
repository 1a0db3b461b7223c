"""A sequence that is handed over goes on bit for bit, where its pages are; whoever dies on the way."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from actors.attention import AttentionServer, ViewInbox
from actors.engine import Engine
from actors.messages import Terms, TokenEvent
from actors.scheduler import SchedulerLimits
from ingress.engine_client import Call, EngineClient
from ingress.link import Endpoint
from model.cache import PAGE_TOKENS
from model.sampling import Sampling
from tests.shoals import TOKEN, generate, local_engine

GREEDY = Sampling(max_tokens=80, temperature=0.0, ignore_eos=True, logprobs=0)
SAMPLED = replace(GREEDY, seed=9, temperature=1.1, top_p=0.95)
LIMIT_S = 30.0
Answer = tuple[list[int], list[float], int | None]


def prompt(seed: int, num_tokens: int) -> list[int]:
    generator = Random(seed)
    return [generator.randrange(16, 272) for _ in range(num_tokens)]


LONG, OTHER = prompt(1, 300), prompt(3, 225)
ASKED = {"long": (LONG, GREEDY), "sampled": (OTHER, SAMPLED)}
SAID = 36  # drafting rests by then: the last full page is one that the MTP layer has not read to its end


@dataclass
class Actor:
    """One in a thread, until the block ends; `engine` is for looking only."""

    engine: Engine
    server: AttentionServer

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            actor_id=self.server._handovers._out._sender.actor_id, host="127.0.0.1", port=self.server.port
        )


@contextmanager
def serving(engine: Engine, name: str) -> Iterator[Actor]:
    stopping = threading.Event()
    server = AttentionServer(
        engine, views=ViewInbox(), stopping=stopping, actor_id=name, incarnation=1, token=TOKEN
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield Actor(engine, server)
        assert thread.is_alive(), "the server's loop has died"
        assert engine.free_pages == engine.stats()["pages"], "all pages are back"
    finally:
        server.stop()
        thread.join(LIMIT_S)


@dataclass
class Doomed:
    """One in a process of its own."""

    process: subprocess.Popen[str]
    name: str

    @property
    def endpoint(self) -> Endpoint:
        """Waits until it listens."""
        assert self.process.stdout is not None
        return Endpoint(actor_id=self.name, host="127.0.0.1", port=int(self.process.stdout.readline()))


@pytest.fixture(scope="module", autouse=True)
def doomed(tiny_v32: Path) -> Iterator[tuple[Doomed, Doomed]]:
    """They start while the first tests run."""
    words = [sys.executable, "-m", "tests.unit.attention_process", str(tiny_v32)]
    started = [
        Doomed(subprocess.Popen([*words, name, TOKEN.decode()], stdout=subprocess.PIPE, text=True), name)
        for name in ("leaver", "heir")
    ]
    yield started[0], started[1]
    for one in started:
        one.process.kill()
        one.process.communicate()


def leaving(endpoint: Endpoint) -> Endpoint:
    return replace(endpoint, draining=True)


class Door:
    """An ingress that asks, and notes what it is told."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.engine = EngineClient(endpoints, token=TOKEN, identity="door-0")
        self.events: dict[str, list[TokenEvent]] = {}

    async def ask(self, name: str, ids: list[int], told: Sampling, salt: str = "") -> Answer:
        events = self.events[name] = []
        call = Call(terms=Terms(cache_salt=salt))
        async for event in self.engine.generate(name, ids, told, call):
            events.append(event)
        tokens = [token for event in events for token in event.token_ids]
        logprobs = [logprob for event in events for logprob in event.logprobs]
        [cached] = [event.num_cached for event in events if event.num_cached is not None] or [None]
        return tokens, logprobs, cached

    async def until_said(self, name: str, num_tokens: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while sum(len(e.token_ids) for e in self.events.get(name, ())) < num_tokens:
                await asyncio.sleep(0.001)


async def connected(door: Door, count: int) -> None:
    door.engine.start()
    async with asyncio.timeout(LIMIT_S):
        while len(door.engine._candidates()) < count:
            await asyncio.sleep(0.001)


async def until(condition, what: str) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def pair(tiny_v32: Path) -> tuple[Engine, Engine]:
    slow = SchedulerLimits(max_sequences=8, chunk_tokens=32, max_step_tokens=40)  # a prompt takes many steps
    return local_engine(tiny_v32, limits=slow), local_engine(tiny_v32, limits=slow)


@pytest.fixture(scope="module")
def expected(tiny_v32: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Of ASKED, undisturbed."""
    ids, told = zip(*ASKED.values(), strict=True)
    answers = generate(local_engine(tiny_v32), ids, told)
    return {name: (answer.token_ids, answer.logprobs) for name, answer in zip(ASKED, answers, strict=True)}


@pytest.fixture(scope="module")
def long(expected: dict[str, tuple[list[int], list[float]]]) -> tuple[list[int], list[float]]:
    return expected["long"]


@pytest.mark.parametrize("draft_tokens", [0, 1])
def test_text_logprobs_and_usage_are_those_of_an_undisturbed_run(
    tiny_v32: Path,
    pair: tuple[Engine, Engine],
    expected: dict[str, tuple[list[int], list[float]]],
    draft_tokens: int,
) -> None:
    async def scenario(old: Actor, heir: Actor) -> None:
        door = Door(old.endpoint)
        await connected(door, 1)
        work = {name: asyncio.create_task(door.ask(name, *ask)) for name, ask in ASKED.items()}
        for name in ASKED:
            await door.until_said(name, SAID)
        door.engine.update([leaving(old.endpoint), heir.endpoint])
        for name, one in work.items():
            assert await one == (*expected[name], 0), name
        counters = old.server._handovers.counters
        assert (counters.sequences, counters.failed) == (2, 0)
        assert not old.engine.has_work
        full = sum((len(ids) + SAID) // PAGE_TOKENS for ids, _ in ASKED.values())
        assert counters.pages_out == heir.server._handovers.counters.pages_in >= full
        assert heir.engine.stats()["prefix_hit_tokens"] == counters.pages_out * PAGE_TOKENS
        await door.engine.close()

    drafting = [local_engine(tiny_v32, draft_tokens=1) for _ in range(2 * draft_tokens)]
    first, second = drafting or pair
    with serving(first, "a") as old, serving(second, "b") as heir:
        asyncio.run(scenario(old, heir))


def test_the_next_life_in_the_same_seat_takes_over_what_the_one_before_has(
    pair: tuple[Engine, Engine], long: tuple[list[int], list[float]]
) -> None:
    async def scenario(old: Actor, heir: Actor) -> None:
        assert old.endpoint.actor_id == heir.endpoint.actor_id
        door = Door(old.endpoint)
        await connected(door, 1)
        work = asyncio.create_task(door.ask("r", LONG, GREEDY, salt="restart"))
        await door.until_said("r", SAID)
        assert old.server.num_sequences == 1 and not old.server.is_handing_over
        door.engine.update([heir.endpoint, leaving(old.endpoint)])
        assert (await work)[:2] == long
        counters = old.server._handovers.counters
        assert (counters.sequences, counters.failed) == (1, 0)
        assert counters.pages_out >= (len(LONG) + SAID) // PAGE_TOKENS
        await until(lambda: not old.server.is_handing_over, "nothing is left to move")
        assert old.server.num_sequences == 0
        door.engine.update([heir.endpoint])
        assert [keeper.endpoint for keeper in door.engine._keepers.values()] == [heir.endpoint]
        await door.engine.close()

    with serving(pair[0], "a") as old, serving(pair[1], "a") as heir:
        asyncio.run(scenario(old, heir))


def test_who_moves_before_its_first_token_is_told_what_it_found_at_first(
    pair: tuple[Engine, Engine], long: tuple[list[int], list[float]]
) -> None:
    """Else the pages that it has computed itself would be told as found."""

    async def scenario(old: Actor, heir: Actor) -> None:
        door = Door(old.endpoint)
        await connected(door, 1)
        counters = old.engine.counters
        before, decoded = counters.prefill_tokens, counters.decode_tokens
        work = asyncio.create_task(door.ask("r", LONG, GREEDY, salt="one"))
        await until(lambda: counters.prefill_tokens > before + PAGE_TOKENS, "a page")
        door.engine.update([leaving(old.endpoint), heir.endpoint])
        tokens, logprobs, cached = await work
        assert (tokens, logprobs) == long
        assert cached == 0
        assert counters.decode_tokens == decoded, "it has said nothing there"
        assert old.server._handovers.counters.pages_out > 0
        again = Door(heir.endpoint)
        await connected(again, 1)
        short = replace(GREEDY, max_tokens=1)
        assert (await again.ask("same", LONG, short, salt="one"))[2] >= 4 * PAGE_TOKENS - PAGE_TOKENS
        assert (await again.ask("another", LONG, short, salt="two"))[2] == 0, "salts never meet"
        await door.engine.close()
        await again.engine.close()

    with serving(pair[0], "a") as old, serving(pair[1], "b") as heir:
        asyncio.run(scenario(old, heir))


def test_an_heir_without_room_is_passed_over_and_nothing_is_lost(
    tiny_v32: Path, pair: tuple[Engine, Engine], long: tuple[list[int], list[float]]
) -> None:
    small = local_engine(tiny_v32, num_pages=3)

    async def scenario(old: Actor, full: Actor) -> None:
        door = Door(old.endpoint)
        await connected(door, 1)
        work = asyncio.create_task(door.ask("r", LONG, GREEDY, salt="three"))
        await door.until_said("r", 20)
        full.engine._pool.take(2)
        door.engine.update([leaving(old.endpoint), full.endpoint])
        assert (await work)[:2] == long, "it ends where it began"
        assert old.server._handovers.counters.failed == 1
        full.engine._pool.give_back([1, 2])
        await door.engine.close()

    with serving(pair[0], "a") as old, serving(small, "b") as full:
        asyncio.run(scenario(old, full))


def test_an_heir_that_dies_meanwhile_costs_nothing(
    doomed: tuple[Doomed, Doomed], pair: tuple[Engine, Engine], long: tuple[list[int], list[float]]
) -> None:
    async def scenario(old: Actor, heir: Endpoint, process: subprocess.Popen[str]) -> None:
        door = Door(old.endpoint, leaving(heir))
        await connected(door, 1)
        work = asyncio.create_task(door.ask("r", LONG, GREEDY, salt="four"))
        await door.until_said("r", 20)
        await until(lambda: door.engine._keepers[heir.place].link is not None, "the link to the heir")
        process.send_signal(signal.SIGSTOP)  # the kernel takes what is sent to it
        handover = old.server._handovers._out
        door.engine.update([leaving(old.endpoint), heir])
        await until(lambda: bool(handover._under_way), "the hand-over")
        await until(lambda: old.server.is_handing_over, "it says so")
        assert not handover.is_under_way(time.monotonic() + 60.0), "a few pages are not worth that long"
        process.kill()
        await until(lambda: not old.server.is_handing_over, "with nobody to go to it does not wait")
        assert (await work)[:2] == long
        assert old.server._handovers.counters.failed == 1
        await door.engine.close()

    with serving(pair[0], "a") as old:
        asyncio.run(scenario(old, doomed[1].endpoint, doomed[1].process))


def test_a_leaver_that_dies_meanwhile_is_resumed_from_its_journal(
    doomed: tuple[Doomed, Doomed], pair: tuple[Engine, Engine], long: tuple[list[int], list[float]]
) -> None:
    async def scenario(leaver: Endpoint, heir: Actor) -> None:
        door = Door(leaver)
        await connected(door, 1)
        work = asyncio.create_task(door.ask("r", LONG, GREEDY, salt="five"))
        await door.until_said("r", 20)
        door.engine.update([leaving(leaver), heir.endpoint])
        assert (await work)[:2] == long
        assert offered.is_set(), "the hand-over had begun"
        await door.engine.close()

    with serving(pair[1], "b") as heir:
        intake, offered = heir.server._handovers._in, threading.Event()
        offer = intake.offered

        def kill_first(*arguments):
            doomed[0].process.kill()
            offered.set()
            return offer(*arguments)

        intake.offered = kill_first
        asyncio.run(scenario(doomed[0].endpoint, heir))
