"""The attention actor at its socket: every sequence ends once, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.attention import AttentionServer, ViewInbox
from actors.engine import Engine
from actors.messages import (
    FINISH_CANCELLED,
    FINISH_ERROR,
    FINISH_LENGTH,
    FINISH_OVERLOADED,
    FINISH_STOP,
    PROOF_TOKENS,
    Cancel,
    Events,
    Submit,
    Terms,
    TokenEvent,
    unpack_events,
)
from actors.runner import Runner
from ingress.engine_client import EngineClient
from ingress.link import Endpoint
from ingress.tokens import Tokenizer
from model.cache import PAGE_TOKENS
from model.grammar import Grammars
from model.sampling import Sampling
from router.connection import Connection, connect
from router.exchange import Exchange
from router.heartbeat import Beat
from router.tcp import TcpTransport
from router.view import ActorId, ExpertActor, make_view
from router.wire import kinds
from tests.shoals import (
    CONTEXT,
    TOKEN,
    Generated,
    engine_of,
    generate,
    load,
    local_engine,
    local_parts,
    view_of,
)
from tests.unit.test_turns import Gated

LIMIT_S = 20.0
NUM_PAGES = 24
PROMPT = [20, 30, 40]
GREEDY = Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
ENDLESS = dataclasses.replace(GREEDY, max_tokens=10**6)


class Running:
    """A server in a thread; `engine` is for looking only."""

    def __init__(
        self,
        engine: Engine,
        views: ViewInbox,
        stopping: threading.Event,
        grammars: Grammars | None = None,
    ) -> None:
        self.engine = engine
        self.server = AttentionServer(
            engine,
            views=views,
            stopping=stopping,
            actor_id="attention-0",
            incarnation=1,
            token=TOKEN,
            grammars=grammars,
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(actor_id="attention-0", host=self.server.host, port=self.server.port)

    def connect(self, name: str = "door-0") -> Door:
        place = ExpertActor(
            actor_id=ActorId("attention-0"), incarnation=1, host=self.server.host, port=self.server.port
        )
        return Door(connect(place, token=TOKEN, actor=name, incarnation=1, accepted=kinds(Events, Beat)))

    def until_idle(self) -> None:
        """Every sequence is gone and every page is back."""
        until(lambda: self.engine.free_pages == NUM_PAGES - 1 and not self.engine.has_work, "the pages")

    def stop(self) -> None:
        assert self.thread.is_alive(), "the server's loop has died"
        self.server.stop()
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()


class Door:
    """An ingress that speaks frames, so that it can also say what a good one never would."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.events: list[TokenEvent] = []
        self.num_frames = 0

    def submit(self, name: str, ids: list[int], told: Sampling = GREEDY, **changes: Any) -> None:
        """changes: what the header says other than the truth."""
        fields = {"num_prompt": len(ids), "num_emitted": 0, "sampling": dataclasses.asdict(told)}
        submit = Submit(request_id=name, **(fields | changes))
        self.connection.send(submit, np.array(ids, dtype="<i4").tobytes())

    def listen(self) -> None:
        self.connection.flush()
        for frame in self.connection.receive():
            if isinstance(frame.message, Beat):
                continue  # a step has taken long
            assert isinstance(frame.message, Events)
            events = unpack_events(frame.payload)
            assert len(events) == frame.message.num_events > 0
            self.num_frames += 1
            self.events += events

    def of(self, name: str) -> list[TokenEvent]:
        return [event for event in self.events if event.request_id == name]

    def finish(self, name: str) -> TokenEvent:
        """Wait for the terminal event of a sequence; check the history that led there."""
        until(lambda: self.listen() or any(event.finish for event in self.of(name)), f"the end of {name}")
        *before, last = self.of(name)
        assert [event.finish for event in before] == [None] * len(before)
        for event, following in pairwise([*before, last]):
            assert following.first == event.first + len(event.token_ids)
        return last

    def tokens(self, name: str) -> list[int]:
        return [token for event in self.of(name) for token in event.token_ids]


def until(condition, what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {LIMIT_S:g} s for {what}"
        time.sleep(0.001)


@pytest.fixture(scope="module")
def engine(tiny_v32: Path) -> Engine:
    return local_engine(tiny_v32, num_pages=NUM_PAGES)


@pytest.fixture(name="actor")
def _actor(engine: Engine) -> Iterator[Running]:
    running = Running(engine, ViewInbox(), threading.Event())
    yield running
    running.stop()
    assert not engine.has_work
    assert engine.free_pages == NUM_PAGES - 1


@pytest.fixture(scope="module")
def expected(tiny_v32: Path) -> Generated:
    return generate(local_engine(tiny_v32), [PROMPT], GREEDY)[0]


def test_a_sequence_streams_its_tokens_and_ends_once(actor: Running, expected: Generated):
    door = actor.connect()
    door.submit("r", PROMPT)
    assert door.finish("r").finish == FINISH_LENGTH
    assert door.tokens("r") == expected.token_ids
    door.submit("r", PROMPT)  # an id that has ended is free again
    until(lambda: door.listen() or len(door.tokens("r")) == 24, "the second run")
    assert door.tokens("r") == 2 * expected.token_ids
    door.connection.close()


def test_a_resumed_sequence_says_only_what_was_not_said_yet(actor: Running, expected: Generated):
    door = actor.connect()
    said = expected.token_ids[:5]
    door.submit("r", [*PROMPT, *said], num_prompt=3, num_emitted=5)
    assert door.finish("r").finish == FINISH_LENGTH
    assert door.of("r")[0].first == 5
    assert door.tokens("r") == expected.token_ids[5:]
    door.submit("all said", [*PROMPT, *expected.token_ids], num_prompt=3, num_emitted=12)
    last = door.finish("all said")
    assert (last.first, last.token_ids, last.finish) == (12, (), FINISH_LENGTH)
    door.connection.close()


def test_who_is_let_in_hears_so_before_its_first_token_and_who_is_refused_never(actor: Running):
    door = actor.connect()
    door.submit("r", PROMPT)
    door.finish("r")
    first, second, *_ = door.of("r")
    assert (first.first, first.token_ids, first.finish) == (0, (), None)
    assert second.token_ids
    door.submit("bad", [-1])
    assert door.finish("bad").finish == FINISH_ERROR
    assert len(door.of("bad")) == 1
    door.connection.close()


def test_suspects_are_computed_one_after_another_and_each_is_told_before(actor: Running, expected: Generated):
    door = actor.connect()
    names, suspected = ["s0", "s1", "s2", "s3"], {"is_suspect": True, "is_promised": True}
    for name in names:
        door.submit(name, PROMPT, terms=suspected)
    door.connection.send(Cancel(request_id="s2"))  # in vain if it was quicker
    assert {door.finish(name).finish for name in names} <= {FINISH_LENGTH, FINISH_CANCELLED}
    served = [name for name in names if door.of(name)[-1].finish == FINISH_LENGTH]
    assert {"s0", "s1", "s3"} <= set(served)
    for name in served:
        assert not door.of(name)[0].token_ids and door.tokens(name) == expected.token_ids
    for earlier, later in pairwise(served):
        let_in = door.events.index(door.of(later)[0])
        said = [event for event in door.events[:let_in] if event.request_id == earlier]
        assert sum(len(event.token_ids) for event in said) >= PROOF_TOKENS
    door.connection.close()


def test_a_bias_reaches_the_sampler(actor: Running):
    door = actor.connect()
    door.submit("r", PROMPT, dataclasses.replace(GREEDY, logit_bias=((77, 100.0),)))
    door.finish("r")
    assert door.tokens("r") == [77] * GREEDY.max_tokens
    door.connection.close()


def test_cancelling_in_mid_stream_ends_the_sequence_and_frees_its_pages(actor: Running):
    door = actor.connect()
    door.submit("r", [50] * 200, ENDLESS)
    until(lambda: door.listen() or len(door.tokens("r")) >= 3, "three tokens")
    door.connection.send(Cancel(request_id="r"))
    last = door.finish("r")
    assert (last.finish, last.token_ids) == (FINISH_CANCELLED, ())
    assert last.first == len(door.tokens("r"))
    actor.until_idle()
    door.connection.send(Cancel(request_id="r"))  # it has ended: no second end
    door.connection.send(Cancel(request_id="never heard of"))
    door.submit("next", PROMPT)
    door.finish("next")
    assert [event.finish for event in door.events if event.finish] == [FINISH_CANCELLED, FINISH_LENGTH]
    door.connection.close()


def test_a_sequence_cancelled_while_it_waits_for_room_ends_too(actor: Running):
    door = actor.connect()
    for number in range(4):  # more than the pool holds
        door.submit(str(number), [50 + number] * 500, ENDLESS)
    until(lambda: door.listen() or actor.engine.num_waiting > 0, "somebody to wait")
    for number in (3, 0, 2, 1):
        door.connection.send(Cancel(request_id=str(number)))
    assert {door.finish(str(number)).finish for number in range(4)} == {FINISH_CANCELLED}
    actor.until_idle()
    door.connection.close()


def test_the_sequences_of_an_ingress_that_leaves_are_dropped_and_others_go_on(
    actor: Running, expected: Generated
):
    staying, leaving = actor.connect("door-0"), actor.connect("door-1")
    for number in range(3):
        leaving.submit(str(number), [50] * (100 * number + 1), ENDLESS)
    until(lambda: leaving.listen() or leaving.events, "the first token")
    staying.submit("r", PROMPT)
    leaving.connection.close()
    assert staying.finish("r").finish == FINISH_LENGTH
    assert staying.tokens("r") == expected.token_ids
    actor.until_idle()
    staying.connection.close()


def test_an_ingress_that_submits_and_leaves_at_once_is_served_nothing(actor: Running):
    door = actor.connect()
    door.submit("r", PROMPT, ENDLESS)
    door.connection.close()
    other = actor.connect()
    other.submit("later", PROMPT)
    other.finish("later")
    actor.until_idle()
    other.connection.close()


def test_two_ingresses_may_use_the_same_request_id(actor: Running, expected: Generated, tiny_v32: Path):
    other_prompt = [99, 98, 97, 96]
    other_expected = generate(local_engine(tiny_v32), [other_prompt], GREEDY)[0]
    one, other = actor.connect("door-0"), actor.connect("door-0")  # even under one name
    one.submit("r", PROMPT)
    other.submit("r", other_prompt)
    assert one.finish("r").finish == other.finish("r").finish == FINISH_LENGTH
    assert one.tokens("r") == expected.token_ids
    assert other.tokens("r") == other_expected.token_ids
    one.submit("mine", PROMPT, ENDLESS)
    until(lambda: one.listen() or one.of("mine"), "the first token")
    other.connection.send(Cancel(request_id="mine"))
    other.submit("next", PROMPT)
    other.finish("next")
    assert not any(event.finish for event in one.of("mine")), "one ingress cancelled another's sequence"
    one.connection.close()
    other.connection.close()
    actor.until_idle()


BAD = {
    "no prompt": ([], {}),
    "a negative token": ([1, -1], {}),
    "a token beyond the vocabulary": ([1, 272], {}),
    "too long for the context": ([5] * CONTEXT, {}),
    "fewer tokens than announced": (PROMPT, {"num_prompt": 4}),
    "more tokens than announced": (PROMPT, {"num_prompt": 2}),
    "a negative prompt": (PROMPT, {"num_prompt": -1, "num_emitted": 4}),
    "negative emitted": (PROMPT, {"num_prompt": 4, "num_emitted": -1}),
    "only emitted": (PROMPT, {"num_prompt": 0, "num_emitted": 3}),
    "no sampling": (PROMPT, {"sampling": {}}),
    "an unknown field": (PROMPT, {"sampling": {"max_tokens": 3, "best_of": 2}}),
    "a mistyped field": (PROMPT, {"sampling": {"max_tokens": 3.5}}),
    "a seed of 65 bits": (PROMPT, {"sampling": {"max_tokens": 3, "seed": 2**63}}),
    "a temperature that is no number": (PROMPT, {"sampling": {"max_tokens": 3, "temperature": float("nan")}}),
    "a negative temperature": (PROMPT, {"sampling": {"max_tokens": 3, "temperature": -1.0}}),
    "an infinite penalty": (PROMPT, {"sampling": {"max_tokens": 3, "presence_penalty": float("inf")}}),
    "no repetition penalty": (PROMPT, {"sampling": {"max_tokens": 3, "repetition_penalty": 0.0}}),
    "a stop token that is none": (
        PROMPT,
        {"sampling": {"max_tokens": 3, "min_tokens": 2, "stop_token_ids": (5000,)}},
    ),
    "a bias of no token": (PROMPT, {"sampling": {"max_tokens": 3, "logit_bias": ((5000, 1.0),)}}),
    "a bias that is no number": (PROMPT, {"sampling": {"max_tokens": 3, "logit_bias": ((5, math.inf),)}}),
    "terms of another kind": (PROMPT, {"terms": {"tenant": 5}}),
    "a negative stop token": (
        PROMPT,
        {"sampling": {"max_tokens": 3, "min_tokens": 2, "stop_token_ids": (-1,)}},
    ),
}


def test_a_bad_submit_ends_in_one_error_event_and_harms_nobody_else(actor: Running, expected: Generated):
    door = actor.connect()
    for name, (ids, changes) in BAD.items():
        door.submit("good " + name, PROMPT)
        door.submit(name, ids, **changes)
        last = door.finish(name)
        assert len(door.of(name)) == 1, name
        assert (last.finish, last.token_ids) == (FINISH_ERROR, ()), name
        assert last.error, name
    for name in BAD:
        assert door.finish("good " + name).finish == FINISH_LENGTH
        assert door.tokens("good " + name) == expected.token_ids
    door.connection.close()


def test_a_payload_that_is_no_int32s_is_an_error_event(actor: Running):
    door = actor.connect()
    header = Submit(request_id="r", num_prompt=1, num_emitted=0, sampling={"max_tokens": 1})
    door.connection.send(header, b"12345")
    assert door.finish("r").finish == FINISH_ERROR
    door.connection.close()


def test_a_second_submit_under_a_living_id_is_an_error(actor: Running):
    door = actor.connect()
    door.submit("r", PROMPT, ENDLESS)
    door.submit("r", PROMPT)
    until(lambda: door.listen() or any(event.finish for event in door.events), "the refusal")
    [refusal] = [event for event in door.events if event.finish]
    assert refusal.finish == FINISH_ERROR
    assert "already running" in (refusal.error or "")
    door.connection.close()
    actor.until_idle()


def test_a_stop_token_ends_the_sequence_and_min_tokens_puts_it_off(actor: Running, expected: Generated):
    door = actor.connect()
    stop = expected.token_ids[4]
    first = expected.token_ids.index(stop)
    door.submit("stops", PROMPT, dataclasses.replace(GREEDY, stop_token_ids=(stop,)))
    assert door.finish("stops").finish == FINISH_STOP
    assert door.tokens("stops") == expected.token_ids[: first + 1]
    later = dataclasses.replace(GREEDY, stop_token_ids=(stop,), min_tokens=first + 3)
    door.submit("goes on", PROMPT, later)
    door.finish("goes on")
    assert stop not in door.tokens("goes on")[: first + 3]
    assert len(door.tokens("goes on")) >= first + 3
    door.connection.close()


def test_the_context_ends_a_sequence_whatever_max_tokens_says(actor: Running):
    door = actor.connect()
    door.submit("r", [7] * (CONTEXT - 4), ENDLESS)
    assert door.finish("r").finish == FINISH_LENGTH
    assert len(door.tokens("r")) == 4
    door.connection.close()


def test_the_tokens_of_a_step_come_in_one_frame(actor: Running):
    door = actor.connect()
    for number in range(4):
        door.submit(str(number), [50 + number] * 3, dataclasses.replace(GREEDY, max_tokens=30))
    until(lambda: door.listen() or sum(bool(event.finish) for event in door.events) == 4, "all ends")
    assert sum(len(event.token_ids) for event in door.events) == 120
    assert door.num_frames < 60  # 30 if all four were submitted within one step
    door.connection.close()


def test_the_ingress_engine_gets_the_same_text_and_its_cancellation_frees_pages(
    actor: Running, expected: Generated
):
    async def scenario() -> None:
        ingress = EngineClient([actor.endpoint], token=TOKEN, identity="door-9")
        together = [asyncio.create_task(_collect(ingress, f"r{number}")) for number in range(5)]
        assert await asyncio.gather(*together) == [expected.token_ids] * 5
        async with aclosing(ingress.generate("endless", PROMPT, ENDLESS)) as events:
            async for event in events:
                if event.first >= 5:
                    break
        async with asyncio.timeout(LIMIT_S):
            while actor.engine.has_work:
                await asyncio.sleep(0.002)
        await ingress.close()

    asyncio.run(scenario())
    actor.until_idle()


async def _collect(ingress: EngineClient, name: str) -> list[int]:
    return [token async for event in ingress.generate(name, PROMPT, GREEDY) for token in event.token_ids]


@pytest.mark.parametrize("checkpoint", ["tiny_v32", "tiny_v3"])
def test_what_earlier_owners_left_in_their_pages_reaches_nobody(
    request: pytest.FixtureRequest, checkpoint: str
):
    """One sequence's NaN must not end those that get its pages next."""
    parts = local_parts(request.getfixturevalue(checkpoint))
    expected = generate(engine_of(parts), [PROMPT], GREEDY)[0]
    for left_behind in (float("nan"), float("inf"), 1e30):
        engine = engine_of(parts, num_pages=NUM_PAGES)
        for slots in (*engine._runner.cache.latent_SC, *engine._runner.cache.index_SI):
            slots[PAGE_TOKENS:] = left_behind  # every page but the null page
        assert generate(engine, [PROMPT, [50] * 200], GREEDY)[0] == expected


def test_stopping_ends_a_step_that_waits_for_experts_which_nobody_holds(tiny_v32: Path):
    config, decoder, _ = load(tiny_v32)
    views, stopping = ViewInbox(), threading.Event()
    nobody = view_of(config, 1, [], [])
    transport = TcpTransport(token=TOKEN, actor="attention-0", incarnation=1)
    exchange = Exchange(transport, nobody, next_view=views.newest, should_stop=stopping.is_set)
    engine = Engine(Runner(decoder, exchange, num_pages=NUM_PAGES), context_tokens=CONTEXT)
    running = Running(engine, views, stopping)
    door = running.connect()
    door.submit("r", PROMPT)
    until(lambda: exchange.counters.parked_s > 0.0, "the step to park")
    running.stop()
    transport.close()
    door.connection.close()


def test_of_views_put_by_many_threads_the_newest_stays():
    inbox = ViewInbox()
    assert inbox.newest() is None
    views = [make_view(epoch, [], {}, num_experts=1, first_layer=0, num_layers=1) for epoch in range(200)]
    threads = [
        threading.Thread(target=lambda own: [inbox.put(v) for v in own], args=[views[i::4]]) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inbox.newest() is views[-1]
    inbox.put(views[3])
    assert inbox.newest() is views[-1]


def test_who_waits_for_a_grammar_waits_no_longer_than_it_may_and_a_fault_ends_its_own(
    tiny_v32: Path, tokenizer: Tokenizer
) -> None:
    grammars = Gated(tokenizer.directory)
    running = Running(local_engine(tiny_v32, num_pages=NUM_PAGES), ViewInbox(), threading.Event(), grammars)
    door = running.connect()
    told = dataclasses.replace(GREEDY, ignore_eos=False, max_tokens=1)
    door.submit("first", PROMPT, dataclasses.replace(told, grammar='start: "broken"\n'))
    door.submit("gone", PROMPT, dataclasses.replace(told, grammar='start: "gone"\n'))
    late = dataclasses.asdict(Terms(max_wait_s=0.05))
    door.submit("late", PROMPT, dataclasses.replace(told, grammar='start: "late"\n'), terms=late)
    door.submit("last", PROMPT, dataclasses.replace(told, grammar='start: "last"\n'))
    door.connection.send(Cancel(request_id="gone"))
    assert door.finish("late").finish == FINISH_OVERLOADED
    assert door.finish("gone").finish == FINISH_CANCELLED
    grammars.gate.set()
    assert door.finish("first").finish == FINISH_ERROR
    assert door.finish("last").finish == FINISH_LENGTH
    assert grammars.compiled == ['start: "broken"\n', 'start: "last"\n']
    running.stop()
