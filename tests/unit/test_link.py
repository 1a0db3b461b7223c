"""The engine over real sockets: no gap, no duplicate, one end."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import aclosing, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import (
    FINISH_LENGTH,
    FINISH_STOP,
    Submit,
    Terms,
    TokenEvent,
    pack_events,
    taken_event,
    unpack_events,
)
from ingress.engine_client import MAX_LOSSES, EngineClient
from ingress.errors import EngineCrashed, EngineError, Overloaded
from ingress.journal import Journal, JournalError
from ingress.link import AttentionLink, Credentials, Endpoint
from model.sampling import Sampling
from router.heartbeat import SILENCE_S
from router.wire import BadFrame, WireError
from tests.unit.loopback_engine import EOS_ID, TOKEN, LoopbackEngine, hashed, saying

PROMPT = (20, 30, 40)


def expected(num_tokens: int, prompt: tuple[int, ...] = PROMPT) -> list[int]:
    """What the loopback says after `prompt` when nothing goes wrong."""
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(hashed(ids, len(prompt)))
    return ids[len(prompt) :]


def make_engine(*actors: LoopbackEngine, patience_s: float = 10.0) -> EngineClient:
    return EngineClient(
        [actor.endpoint for actor in actors], token=TOKEN, identity="door-0", patience_s=patience_s
    )


async def collect(engine: EngineClient, name: str = "r", **sampling: int) -> list[TokenEvent]:
    return [
        event async for event in engine.generate(name, PROMPT, Sampling(**{"max_tokens": 40, **sampling}))
    ]


def check(events: list[TokenEvent], num_tokens: int) -> None:
    """The history checker: gap-free, duplicate-free, one end, the tokens of the fault-free run."""
    ids: list[int] = []
    for event in events:
        assert event.first == len(ids)
        ids.extend(event.token_ids)
    assert ids == expected(num_tokens)
    assert [event.finish for event in events if event.finish] == [FINISH_LENGTH]
    assert events[-1].finish == FINISH_LENGTH


async def until(condition, limit_s: float = 10.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


async def closed(*parts: LoopbackEngine | EngineClient) -> None:
    for part in parts:
        await (part.stop() if isinstance(part, LoopbackEngine) else part.close())


def test_a_sequence_arrives_in_order_with_one_end():
    async def scenario() -> None:
        actor = LoopbackEngine(tokens_per_event=3)
        await actor.start()
        engine = make_engine(actor)
        check(await collect(engine), 40)
        assert engine.open_sequences == 0
        await closed(engine, actor)

    asyncio.run(scenario())


@pytest.mark.parametrize("drop_after", [1, 2, 7, 30])
@pytest.mark.parametrize("tokens_per_event", [1, 4])
def test_a_lost_connection_shows_neither_gap_nor_duplicate(drop_after: int, tokens_per_event: int):
    async def scenario() -> None:
        first = LoopbackEngine(actor_id="a", drop_after=drop_after, tokens_per_event=tokens_per_event)
        second = LoopbackEngine(actor_id="b")
        await first.start()
        await second.start()
        engine = make_engine(first, second)
        engine.start()
        await until(lambda: len(engine._candidates()) == 2)
        check(await collect(engine), 40)
        submits = first.submits + second.submits
        assert [submit.num_prompt for submit in submits] == [3, 3]
        assert len({submit.request_id for submit in submits}) == 2  # each attempt has a name of its own
        await closed(engine, first, second)

    asyncio.run(scenario())


def test_a_connection_found_broken_on_sending_is_not_tried_again_before_it_is_another():
    """The reader learns of it later: whoever sends meanwhile would use up all attempts on it."""

    async def scenario() -> None:
        actor = LoopbackEngine()
        await actor.start()
        engine = make_engine(actor)
        engine.start()
        await until(lambda: len(engine._candidates()) == 1)
        [link] = engine._candidates()

        async def broken() -> None:
            raise BrokenPipeError(32, "Broken pipe")

        link._writer.drain = broken
        check(await collect(engine), 40)
        assert len(engine._candidates()) == 1 and engine._candidates() != [link]
        await closed(engine, actor)

    asyncio.run(scenario())


def test_killing_every_actor_in_turn_under_load_fails_no_sequence():
    async def scenario() -> None:
        actors = [LoopbackEngine(actor_id=f"a{i}", pause_s=0.003, tokens_per_event=2) for i in range(3)]
        for actor in actors:
            await actor.start()
        engine = make_engine(*actors)
        work = [asyncio.create_task(collect(engine, f"r{i}")) for i in range(12)]
        for actor in actors:
            await asyncio.sleep(0.01)
            await actor.stop()
            await asyncio.sleep(0.01)
            await actor.start()
        for events in await asyncio.gather(*work):
            check(events, 40)
        await closed(engine, *actors)

    asyncio.run(scenario())


def test_the_same_actor_takes_its_sequences_back_when_it_returns():
    async def scenario() -> None:
        actor = LoopbackEngine(pause_s=0.005)
        await actor.start()
        engine = make_engine(actor)
        work = asyncio.create_task(collect(engine))
        await until(lambda: actor.num_steps >= 3)
        await actor.stop()
        assert not work.done()
        await actor.start()
        check(await work, 40)
        await closed(engine, actor)

    asyncio.run(scenario())


def test_an_actor_that_leaves_the_view_loses_its_sequences_to_the_others():
    async def scenario() -> None:
        hung, other = LoopbackEngine(actor_id="a", mute=True), LoopbackEngine(actor_id="b")
        await hung.start()
        await other.start()
        engine = make_engine(hung)
        work = asyncio.create_task(collect(engine))
        await until(lambda: hung.submits)
        engine.update([other.endpoint])
        check(await work, 40)
        await closed(engine, hung, other)

    asyncio.run(scenario())


def test_an_actor_that_hangs_loses_its_sequences_to_the_others():
    async def scenario() -> None:
        hung, other = LoopbackEngine(actor_id="a", pause_s=0.005), LoopbackEngine(actor_id="b")
        await hung.start()
        await other.start()
        engine = make_engine(hung)
        work = asyncio.create_task(collect(engine))
        await until(lambda: hung.num_steps >= 3)
        hung.mute = True  # its kernel keeps the connection
        engine.update([hung.endpoint, other.endpoint])
        check(await work, 40)
        assert other.submits[0].num_emitted >= 3
        await closed(engine, hung, other)

    asyncio.run(scenario())


def test_an_actor_that_says_it_lives_keeps_its_sequences_however_long_it_takes():
    async def scenario() -> None:
        busy = LoopbackEngine(pause_s=0.005, beats=True)
        await busy.start()
        engine = make_engine(busy)
        work = asyncio.create_task(collect(engine))
        await until(lambda: busy.num_steps >= 3)
        busy.mute = True
        await asyncio.sleep(1.5 * SILENCE_S)
        busy.mute = False
        check(await work, 40)
        assert len(busy.submits) == 1
        await closed(engine, busy)

    asyncio.run(scenario())


def test_a_draining_actor_keeps_what_it_has_and_gets_nothing_new():
    async def scenario() -> None:
        old, new = LoopbackEngine(actor_id="a", pause_s=0.005), LoopbackEngine(actor_id="b")
        await old.start()
        await new.start()
        engine = make_engine(old)
        work = asyncio.create_task(collect(engine, "before"))
        await until(lambda: old.num_steps >= 2)
        engine.update([draining(old), new.endpoint])
        check(await collect(engine, "after"), 40)
        check(await work, 40)
        assert [submit.request_id for submit in old.submits] == ["before"]
        assert [submit.request_id for submit in new.submits] == ["after"]
        await closed(engine, old, new)

    asyncio.run(scenario())


def draining(actor: LoopbackEngine) -> Endpoint:
    return dataclasses.replace(actor.endpoint, draining=True)


def test_what_moves_is_resumed_where_its_pages_are_however_busy():
    async def scenario() -> None:
        old = LoopbackEngine(actor_id="c", pause_s=0.005, moves=True)
        heir, idle = LoopbackEngine(actor_id="b", pause_s=0.005), LoopbackEngine(actor_id="a")
        for actor in (old, heir, idle):
            await actor.start()
        engine = make_engine(old, heir)
        engine.start()
        await until(lambda: len(engine._candidates()) == 2)
        work = [asyncio.create_task(collect(engine, name)) for name in ("0", "1", "2")]
        await until(lambda: old.num_steps >= 2 and heir.num_steps >= 2)
        moved = [submit.request_id for submit in old.submits]
        engine.update([draining(old), heir.endpoint])
        await until(lambda: bool(old.handovers))
        assert old.handovers[0].heirs == (("b", 1, "127.0.0.1", heir.port),)
        engine.update([draining(old), heir.endpoint, idle.endpoint])
        await until(lambda: len(old.handovers) > 1)
        assert {name for name, *_ in old.handovers[1].heirs} == {"a", "b"}, "the one that has come, too"
        for one in work:
            check(await one, 40)
        assert {submit.request_id for submit in heir.submits} >= {f"{name}~1" for name in moved}
        assert not idle.submits
        engine.update([draining(old), idle.endpoint, heir.endpoint])
        check(await collect(engine), 40)
        assert len(old.handovers) == 2, "of the same ones told once"
        await closed(engine, old, heir, idle)

    asyncio.run(scenario())


def test_an_actor_that_drains_alone_is_told_when_another_has_come():
    async def scenario() -> None:
        old, new = LoopbackEngine(actor_id="a", pause_s=0.005, moves=True), LoopbackEngine(actor_id="b")
        await old.start()
        await new.start()
        engine = make_engine(old)
        work = asyncio.create_task(collect(engine))
        await until(lambda: old.num_steps >= 2)
        engine.update([draining(old)])
        await asyncio.sleep(0.01)
        assert not old.handovers
        engine.update([draining(old), new.endpoint])
        check(await work, 40)
        assert [submit.num_emitted > 0 for submit in new.submits] == [True]
        await closed(engine, old, new)

    asyncio.run(scenario())


@pytest.mark.parametrize("found", [None, 0, 64])
def test_what_was_cached_is_told_as_found_where_it_began(found: int | None):
    """found: None where it had not begun; then what the heir finds is the truth."""
    journal = Journal("r", PROMPT, Sampling(max_tokens=4))
    journal.resume()
    event = TokenEvent(request_id="r", first=0, token_ids=(), num_cached=found, moved_to="b")
    assert journal.accept(event) is None
    assert journal.moved_to == "b"
    journal.resume()
    assert journal.moved_to is None
    first = journal.accept(TokenEvent(request_id="r~1", first=0, token_ids=(7,), num_cached=128))
    assert first is not None
    assert first.num_cached == (128 if found is None else found)


def test_the_least_busy_actor_is_chosen_and_the_lowest_id_on_a_tie():
    async def scenario() -> None:
        actors = [LoopbackEngine(actor_id=f"a{i}", pause_s=0.01) for i in range(3)]
        for actor in actors:
            await actor.start()
        engine = make_engine(*actors)
        engine.start()
        await until(lambda: len(engine._candidates()) == 3)
        work = []
        for number in range(4):
            work.append(asyncio.create_task(collect(engine, f"r{number}")))
            await until(lambda: sum(len(actor.submits) for actor in actors) == len(work))
        assert [[submit.request_id for submit in actor.submits] for actor in actors] == [
            ["r0", "r3"],
            ["r1"],
            ["r2"],
        ]
        await asyncio.gather(*work)
        await closed(engine, *actors)

    asyncio.run(scenario())


def test_closing_the_generator_cancels_the_sequence():
    async def scenario() -> None:
        actor = LoopbackEngine(pause_s=0.005)
        await actor.start()
        engine = make_engine(actor)
        async with aclosing(engine.generate("r", PROMPT, Sampling(max_tokens=100_000))) as events:
            async for _ in events:
                break
        await until(lambda: actor.cancelled == ["r"])
        assert engine.open_sequences == 0
        assert not engine._candidates()[0].open_sequences
        await closed(engine, actor)

    asyncio.run(scenario())


def test_without_any_actor_a_sequence_is_refused_after_the_patience():
    async def scenario() -> None:
        engine = EngineClient([], token=TOKEN, identity="door-0", patience_s=0.05)
        assert not await engine.ready()
        with pytest.raises(Overloaded) as refused:
            await collect(engine)
        assert refused.value.http_status == 503
        assert refused.value.headers["retry-after"] == "1"
        await engine.close()

    asyncio.run(scenario())


def test_a_sequence_that_loses_actor_after_actor_is_given_up():
    async def scenario() -> None:
        actor = LoopbackEngine(mute=True, takes=False)
        await actor.start()
        engine = make_engine(actor)
        work = asyncio.create_task(collect(engine))
        seen = iter(range(1, 100))
        while not work.done():
            count = next(seen)
            await until(lambda count=count: len(actor.submits) >= count or work.done())
            actor.drop_connections()
        with pytest.raises(EngineError):
            await work
        assert len(actor.submits) == MAX_LOSSES
        await closed(engine, actor)

    asyncio.run(scenario())


def test_a_sequence_that_ends_whoever_computes_it_fails_after_the_second_and_nobody_else_does():
    async def scenario() -> None:
        actors = [LoopbackEngine(actor_id=name, pause_s=0.002, fatal_seed=13) for name in "ab"]
        for actor in actors:
            await actor.start()
        engine = make_engine(*actors)
        others = [asyncio.create_task(collect(engine, f"r{n}", max_tokens=60)) for n in range(6)]
        await until(lambda: min(actor.num_steps for actor in actors) > 2)
        with pytest.raises(EngineCrashed) as failed:
            await collect(engine, "poison", seed=13)
        assert (failed.value.http_status, failed.value.code) == (500, "engine_crashed")
        assert sum(actor.num_deaths for actor in actors) == 2
        for other in others:
            check(await other, 60)
        await closed(engine, *actors)

    asyncio.run(scenario())


def test_a_death_counts_against_who_may_be_why_until_it_has_proved_itself():
    journal = Journal("r", PROMPT, Sampling(max_tokens=10))
    journal.resume()
    journal.note_death()
    assert journal.num_deaths == 0, "nobody had taken it"
    assert not is_suspect(journal.resume()[0])
    journal.accept(taken_event(journal.wire_id, 0))
    journal.note_death()
    assert is_suspect(journal.resume()[0])
    journal.note_death()
    assert journal.num_deaths == 1, "a suspect is told when it is computed, and it was not"
    journal.resume()
    assert not journal.is_fatal
    journal.accept(event(0, 1))
    assert journal.num_deaths == 1, "the token that it died at may have been lost"
    journal.accept(event(1, 2))
    assert journal.num_deaths == 0
    assert not is_suspect(journal.resume()[0])


@pytest.mark.parametrize(("said", "deaths"), [((), 2), ((1, 2, 3), 3)])
def test_who_has_spoken_is_tried_once_more(said: tuple[int, ...], deaths: int):
    journal = Journal("r", PROMPT, Sampling(max_tokens=10))
    journal.resume()
    journal.accept(event(0, *said))
    for count in range(1, deaths + 1):
        assert not journal.is_fatal
        journal.accept(taken_event(journal.wire_id, len(said)))
        journal.note_death()
        assert journal.num_deaths == count
        journal.resume()
    assert journal.is_fatal


def test_a_peer_without_the_cluster_token_or_with_another_name_is_refused():
    async def scenario() -> None:
        actor = LoopbackEngine(actor_id="a")
        place = await actor.start()
        good = Credentials(token=TOKEN, identity="door-0", incarnation=1)
        bad = Credentials(token=b"another", identity="door-0", incarnation=1)
        with pytest.raises((WireError, EOFError)):
            await AttentionLink.open(place, bad)
        with pytest.raises(WireError, match="expected 'b'"):
            await AttentionLink.open(Endpoint(actor_id="b", host=place.host, port=place.port), good)
        impostor = LoopbackEngine(actor_id="a", token=b"another")
        with pytest.raises((WireError, EOFError)):
            await AttentionLink.open(await impostor.start(), good)
        await closed(actor, impostor)

    asyncio.run(scenario())


def test_garbage_from_a_peer_ends_the_connection_not_the_engine():
    async def scenario() -> None:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\xff" * 4096)
            writer.close()

        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        actor = LoopbackEngine(actor_id="b")
        await actor.start()
        bad = Endpoint(actor_id="a", host="127.0.0.1", port=port)
        engine = EngineClient([bad, actor.endpoint], token=TOKEN, identity="door-0")
        check(await collect(engine), 40)
        await closed(engine, actor)
        server.close()

    asyncio.run(scenario())


def test_an_end_of_text_is_an_end():
    async def scenario() -> None:
        actor = LoopbackEngine(next_id=saying("hi"))
        await actor.start()
        engine = make_engine(actor)
        events = await collect(engine)
        assert events[-1].finish == FINISH_STOP
        assert [token for event in events for token in event.token_ids][-1] == EOS_ID
        await closed(engine, actor)

    asyncio.run(scenario())


def event(first: int, *ids: int, finish: str | None = None) -> TokenEvent:
    return TokenEvent(request_id="r", first=first, token_ids=ids, finish=finish)


def test_a_journal_drops_what_it_knows_and_keeps_what_is_new():
    journal = Journal("r", PROMPT, Sampling(max_tokens=10))
    assert journal.accept(event(0, 1, 2)).token_ids == (1, 2)
    assert journal.accept(event(0, 1)) is None
    assert journal.accept(event(0, 1, 2)) is None
    fresh = journal.accept(event(1, 2, 3))
    assert (fresh.first, fresh.token_ids) == (2, (3,))
    assert journal.accept(event(3, finish=FINISH_STOP)).finish == FINISH_STOP
    assert journal.emitted == [1, 2, 3]


def test_what_was_cached_is_told_with_the_first_token_and_not_again():
    journal = Journal("r", PROMPT, Sampling(max_tokens=10))
    assert journal.accept(dataclasses.replace(event(0, 1), num_cached=64)).num_cached == 64
    assert journal.accept(dataclasses.replace(event(0, 1, 2), num_cached=128)).num_cached is None


@pytest.mark.parametrize(
    "bad",
    [event(3, 1), event(-1, 1, 2, 3, 4), event(2, *range(20)), event(0, 1, finish=FINISH_STOP)],
    ids=["gap", "negative", "over max_tokens", "ends in the past"],
)
def test_a_journal_refuses_what_breaks_the_rules_and_notes_nothing(bad: TokenEvent):
    journal = Journal("r", PROMPT, Sampling(max_tokens=10))
    journal.accept(event(0, 1, 2))
    with pytest.raises(JournalError):
        journal.accept(bad)
    assert (journal.emitted, journal.finish) == ([1, 2], None)


def test_a_journal_takes_exactly_one_end():
    journal = Journal("r", PROMPT, Sampling(max_tokens=10))
    journal.accept(event(0, 1, finish=FINISH_STOP))
    with pytest.raises(JournalError, match="after the end"):
        journal.accept(event(1, 2))
    with pytest.raises(JournalError, match="after the end"):
        journal.accept(event(1, finish=FINISH_STOP))


def test_a_journal_resumes_with_prompt_and_emitted_ids():
    journal = Journal("r", PROMPT, Sampling(max_tokens=10, seed=7, stop_token_ids=(3, 4)))
    first, payload = journal.resume()
    assert (first.request_id, first.num_emitted, len(payload)) == ("r", 0, 12)
    journal.accept(event(0, 1, 2))
    second, payload = journal.resume()
    assert (second.num_prompt, second.num_emitted) == (3, 2)
    assert payload == b"".join(value.to_bytes(4, "little") for value in (*PROMPT, 1, 2))
    assert Sampling(**second.sampling) == journal.sampling
    assert second.request_id != first.request_id


def is_suspect(submit: Submit) -> bool:
    return Terms(**submit.terms).is_suspect


def is_promised(submit: Submit) -> bool:
    return Terms(**submit.terms).is_promised


def test_a_sequence_is_promised_once_an_actor_has_taken_it_and_not_for_having_been_sent():
    journal = Journal("r", PROMPT, Sampling(max_tokens=10))
    submits = [journal.resume()[0] for _ in range(3)]
    assert journal.accept(taken_event(journal.wire_id, 0)) is None
    submits.append(journal.resume()[0])
    assert list(map(is_promised, submits)) == [False, False, False, True]


def test_a_link_that_breaks_before_the_actor_has_taken_anything_opens_no_other_door():
    async def scenario() -> None:
        actor = LoopbackEngine(mute=True, takes=False)
        await actor.start()
        engine = make_engine(actor)
        work = asyncio.create_task(collect(engine))
        await until(lambda: len(actor.submits) == 1)
        actor.mute = False
        actor.drop_connections()
        check(await work, 40)
        assert list(map(is_promised, actor.submits)) == [False, False]
        await closed(engine, actor)

    asyncio.run(scenario())


events_lists = st.lists(
    st.builds(
        TokenEvent,
        request_id=st.text(max_size=8),
        first=st.integers(0, 2**31),
        token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
        logprobs=st.lists(st.floats(allow_nan=False), max_size=4).map(tuple),
        top=st.lists(
            st.lists(st.tuples(st.integers(0, 9), st.floats(-9, 0)), max_size=2).map(tuple), max_size=2
        ).map(tuple),
        finish=st.none() | st.just(FINISH_STOP),
        error=st.none() | st.text(max_size=8),
    ),
    max_size=4,
)


@given(events_lists)
def test_packed_events_unpack_to_themselves(events: list[TokenEvent]):
    assert unpack_events(pack_events(events)) == events


@given(st.binary(max_size=64))
def test_unpacking_garbage_raises_bad_frame_or_gives_events(payload: bytes):
    with suppress(BadFrame):
        assert all(isinstance(found, TokenEvent) for found in unpack_events(payload))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x91\xc0", b"\x80", pack_events([])[:-1] + b"\x91\x81\xa1x\x01", b"\x91\x80"],
)
def test_payloads_that_are_no_events_are_refused(payload: bytes):
    with pytest.raises(BadFrame):
        unpack_events(payload)
