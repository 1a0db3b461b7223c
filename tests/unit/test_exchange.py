"""Dispatch and combine when things go wrong: the same sums, or a parked step, never a wrong one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.build import local_exchange
from actors.engine import Engine
from actors.expert import ExpertServer
from actors.options import MicroBatches
from actors.runner import Runner
from model.sampling import Sampling
from router import exchange as exchange_module
from router.exchange import Exchange, StepAbandoned
from router.heartbeat import SILENCE_S
from router.roster import FORGET_S
from router.tcp import TcpTransport
from router.transport import Alive, DispatchKey, Event, Lost, Parcel, Refused, Returned
from router.view import ActorId, ExpertActor, View, even_placement, make_view
from tests.shoals import (
    CONTEXT,
    TOKEN,
    Generated,
    experts_of,
    generate,
    load,
    local_engine,
    running,
    view_of,
)

LAYER, HIDDEN, EXPERTS, TOP = 3, 16, 8, 4


def actor(name: str, incarnation: int = 1, port: int = 0) -> ExpertActor:
    return ExpertActor(actor_id=ActorId(name), incarnation=incarnation, host="127.0.0.1", port=port)


def view(epoch: int, placement: dict[str, list[int]]) -> View:
    return make_view(
        epoch,
        [actor(name) for name in placement],
        {ActorId(name): held for name, held in placement.items()},
        num_experts=EXPERTS,
        first_layer=LAYER,
        num_layers=1,
    )


ALL = list(range(EXPERTS))
HALVES = {"a": ALL[:4], "b": ALL[4:]}
COPIES = {"a": ALL, "b": ALL}


def expert_rows(parcel: Parcel) -> Tensor:
    """A made-up expert: row * (expert + 1) + expert, one row per pair."""
    expert_P1 = torch.from_numpy(parcel.expert_P.astype(np.int64))[:, None]
    return parcel.rows_RD[torch.from_numpy(parcel.row_P.astype(np.int64))] * (expert_P1 + 1) + expert_P1


class Scripted:
    """A loopback transport: `react` says which events a parcel causes; they wait until `poll`."""

    def __init__(self, react: Callable[[ActorId, Parcel], list[Event]] | None = None) -> None:
        self.react = react or (lambda name, parcel: [answer(name, parcel)])
        self.views: list[View] = []
        self.posted: list[tuple[ActorId, Parcel]] = []
        self.cancelled: list[DispatchKey] = []
        self.events: list[Event] = []
        self.at_once = 1 << 30  # how many events one poll gives

    def set_view(self, view: View) -> None:
        self.views.append(view)

    def post(self, actor: ActorId, parcel: Parcel) -> None:
        self.posted.append((actor, parcel))
        self.events += self.react(actor, parcel)

    def poll(self, timeout_s: float) -> list[Event]:
        events, self.events = self.events[: self.at_once], self.events[self.at_once :]
        return events

    def cancel(self, key: DispatchKey) -> None:
        self.cancelled.append(key)


def answer(name: ActorId, parcel: Parcel) -> Returned:
    return Returned(actor=name, key=parcel.key, rows_PD=expert_rows(parcel))


class Step:
    """Some tokens with their gate's choice, and the sum that every way of computing it must give."""

    def __init__(self, num_tokens: int, seed: int = 0, hidden: int = HIDDEN) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows_TD = torch.randn(num_tokens, hidden, generator=generator)
        self.weights_TK = torch.rand(num_tokens, TOP, generator=generator)
        scores = torch.rand(num_tokens, EXPERTS, generator=generator)
        self.experts_TK = scores.topk(TOP).indices.sort(-1).values

    @property
    def expected_TD(self) -> Tensor:
        parcel = Parcel(
            key=DispatchKey(epoch=0, step=0, layer=0, micro_batch=0, attempt=0),
            rows_RD=self.rows_TD,
            row_P=np.repeat(np.arange(len(self.rows_TD), dtype=np.int32), TOP),
            expert_P=self.experts_TK.reshape(-1).numpy().astype(np.int32),
        )
        rows_TKD = expert_rows(parcel).view(len(self.rows_TD), TOP, -1)
        return (rows_TKD.double() * self.weights_TK[:, :, None].double()).sum(1)

    def run(self, exchange: Exchange) -> Tensor:
        exchange.begin_step()
        return exchange.combine(exchange.dispatch(LAYER, self.rows_TD, self.experts_TK), self.weights_TK)

    def undisturbed(self) -> Tensor:
        summed_TD = self.run(Exchange(Scripted(), view(1, {"only": ALL})))
        torch.testing.assert_close(summed_TD.double(), self.expected_TD, rtol=1e-5, atol=1e-4)
        return summed_TD


def pairs_of(posted: list[tuple[ActorId, Parcel]]) -> int:
    return sum(len(parcel.row_P) for _, parcel in posted)


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 33])
@pytest.mark.parametrize(
    "placement", [{"only": ALL}, HALVES, COPIES, {"a": ALL, "b": ALL[2:6], "c": ALL[:3]}]
)
def test_sums_do_not_depend_on_the_placement(num_tokens: int, placement: dict[str, list[int]]):
    step, transport = Step(num_tokens), Scripted()
    assert torch.equal(step.run(Exchange(transport, view(1, placement))), step.undisturbed())
    assert pairs_of(transport.posted) == num_tokens * TOP
    for name, parcel in transport.posted:
        assert set(parcel.expert_P.tolist()) <= set(placement[name])
        assert sorted(set(parcel.row_P.tolist())) == list(range(len(parcel.rows_RD)))  # no row sent in vain


@pytest.mark.parametrize("hidden", [1, 16, 64, 100, 257])
def test_a_tokens_sum_has_the_same_bits_whoever_shares_its_step(hidden: int):
    step = Step(40, hidden=hidden)
    together = step.run(Exchange(Scripted(), view(1, HALVES)))
    for start, end in [(0, 1), (7, 8), (39, 40), (3, 5), (10, 27)]:
        part = Step(40, hidden=hidden)
        part.rows_TD, part.weights_TK, part.experts_TK = (
            whole[start:end].contiguous() for whole in (step.rows_TD, step.weights_TK, step.experts_TK)
        )
        assert torch.equal(part.run(Exchange(Scripted(), view(1, HALVES))), together[start:end])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_order_in_which_answers_arrive_changes_nothing(data: st.DataObject):
    placement = {name: [e for e in ALL if e % 4 == i] for i, name in enumerate("abcd")}
    step, transport = Step(9), Scripted()
    exchange = Exchange(transport, view(1, placement))
    exchange.begin_step()
    ticket = exchange.dispatch(LAYER, step.rows_TD, step.experts_TK)
    transport.events = data.draw(st.permutations(transport.events))
    transport.at_once = data.draw(st.integers(1, 4))
    assert torch.equal(exchange.combine(ticket, step.weights_TK), step.undisturbed())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_lost_refused_doubled_or_late_the_sum_is_the_same_while_a_copy_lives(data: st.DataObject):
    """ "c" always answers and holds everything; the others do what hypothesis thinks of."""

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        good = answer(name, parcel)
        if name == "c":
            return [good]
        lost = Lost(actor=name, reason="scripted")
        refused = Refused(actor=name, key=parcel.key, reason="scripted")
        choices = [[good], [lost], [refused], [good, good], [lost, good], [good, lost], [refused, good]]
        return data.draw(st.sampled_from(choices))

    step, transport = Step(6), Scripted(react)
    transport.at_once = data.draw(st.integers(1, 3))
    exchange = Exchange(transport, view(1, {"a": ALL, "b": ALL[1:], "c": ALL}))
    expected = step.undisturbed()
    for _ in range(3):
        assert torch.equal(step.run(exchange), expected)


def test_a_loss_in_mid_step_resends_only_what_is_missing():
    step = Step(12)

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        if name == "a" and parcel.key.attempt < 3:
            return [Lost(actor=name, reason="scripted")]
        return [answer(name, parcel)]

    transport = Scripted(react)
    exchange = Exchange(transport, view(1, {"a": ALL[:4], "b": ALL, "c": ALL[4:]}))
    assert torch.equal(step.run(exchange), step.undisturbed())
    owed = sum(len(parcel.row_P) for name, parcel in transport.posted if name == "a")
    assert owed > 0
    assert pairs_of(transport.posted) == 12 * TOP + owed
    assert exchange.counters.retried_pairs == owed
    assert exchange.counters.lost_actors == 1
    assert transport.posted[-1][0] == "b"
    before = len(transport.posted)
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert "a" not in [name for name, _ in transport.posted[before:]]  # counted out of this view


def test_every_request_has_a_key_of_its_own():
    step, transport = Step(5), Scripted()
    exchange = Exchange(transport, view(1, HALVES))
    for _ in range(4):
        step.run(exchange)
    keys = [parcel.key for _, parcel in transport.posted]
    assert len(set(keys)) == len(keys) == 8


def test_answers_of_another_step_or_attempt_are_dropped():
    step = Step(4)
    poison = {"rows_PD": torch.full((4 * TOP, HIDDEN), torch.nan)}

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        key = parcel.key
        stale = [
            DispatchKey(
                epoch=key.epoch - (i == 0),
                step=key.step - (i == 1),
                layer=key.layer - (i == 2),
                micro_batch=key.micro_batch + (i == 3),
                attempt=key.attempt + 7 * (i == 4),
            )
            for i in range(5)
        ]
        noise: list[Event] = [Returned(actor=name, key=other, **poison) for other in stale]
        noise += [Refused(actor=name, key=other, reason="late") for other in stale]
        return [*noise, answer(name, parcel), Returned(actor=name, key=key, **poison)]

    exchange = Exchange(Scripted(react), view(1, {"only": ALL}))
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert exchange.counters.lost_actors == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[:1],  # one row would be broadcast to all
        lambda rows: rows[:, :1],
        lambda rows: rows[:-1],
        lambda rows: torch.cat([rows, rows]),
        lambda rows: rows.bfloat16(),
        lambda rows: rows.double(),
    ],
)
@pytest.mark.parametrize("placement", [COPIES, {"a": ALL[:4], "b": ALL}])
def test_an_answer_of_the_wrong_shape_or_dtype_counts_as_a_refusal(
    spoil: Callable[[Tensor], Tensor], placement: dict[str, list[int]]
):
    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        good = expert_rows(parcel)
        return [Returned(actor=name, key=parcel.key, rows_PD=spoil(good) if name == "a" else good)]

    step = Step(6)
    exchange = Exchange(Scripted(react), view(1, placement))
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert exchange.counters.lost_actors == 1


def test_a_refusal_sends_the_rows_to_another_replica():
    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        if name == "a":
            return [Refused(actor=name, key=parcel.key, reason="an expert is not held here")]
        return [answer(name, parcel)]

    step = Step(6)
    exchange = Exchange(Scripted(react), view(1, COPIES))
    assert torch.equal(step.run(exchange), step.undisturbed())


class Clock:
    """Time that passes only when asked for: every reading costs a little."""

    def __init__(self, tick_s: float = 0.001) -> None:
        self.now_s = 1000.0
        self.tick_s = tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s


def test_an_actor_that_owes_an_answer_too_long_counts_as_lost():
    """And when it answers after all, beside the one that took over, nobody listens."""
    late: list[Event] = []

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        if name == "a":
            late.append(answer(name, parcel))
            return []
        return [*late, answer(name, parcel)] if parcel.key.attempt > 1 else [answer(name, parcel)]

    step, transport = Step(6), Scripted(react)
    exchange = Exchange(transport, view(1, COPIES), answer_timeout_s=5.0, clock=Clock(0.1))
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert exchange.counters.lost_actors == 1
    assert {name for name, _ in transport.posted} == {"a", "b"}
    assert len(transport.cancelled) == 1


def test_a_second_attempt_has_the_whole_timeout_again():
    """A loss just before the deadline must not make a loss of the replica that takes over."""
    clock, slow = Clock(), list[Event]()

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        if name == "a":
            clock.now_s += 4.9
            return [Lost(actor=name, reason="reset at the last moment")]
        slow.append(answer(name, parcel))
        return []

    class Late(Scripted):
        def poll(self, timeout_s: float) -> list[Event]:
            clock.now_s += 0.5
            if clock.now_s > 1007.0 and slow:
                return [slow.pop()]
            return super().poll(timeout_s)

    step = Step(3)
    exchange = Exchange(Late(react), view(1, COPIES), answer_timeout_s=5.0, clock=clock)
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert exchange.counters.lost_actors == 1


class Slow(Scripted):
    """Parcels to `a` are answered after `polls` polls of `poll_s`, each of which hears `meanwhile`."""

    def __init__(self, clock: Clock, polls: int, poll_s: float, meanwhile: list[Event]) -> None:
        super().__init__(self._react)
        self.clock, self.left, self.poll_s, self.meanwhile = clock, polls, poll_s, meanwhile
        self.kept: list[Event] = []

    def _react(self, name: ActorId, parcel: Parcel) -> list[Event]:
        if name != "a":
            return [answer(name, parcel)]
        self.kept.append(answer(name, parcel))
        return []

    def poll(self, timeout_s: float) -> list[Event]:
        self.clock.now_s += self.poll_s
        self.left -= 1
        if self.left < 0:
            self.events, self.kept = [*self.events, *self.kept], []
        return super().poll(timeout_s) or list(self.meanwhile)


A_LIVES = Alive(actor=ActorId("a"))


@pytest.mark.parametrize(
    ("placement", "meanwhile", "polls", "poll_s", "lost"),
    [
        (COPIES, [], 1000, 0.1, 1),
        (COPIES, [A_LIVES], 1000, 0.1, 0),
        (HALVES, [], 1000, 0.1, 0),
        (COPIES, [], 1, 3600.0, 0),
    ],
    ids=["silent", "it says it lives", "nobody else has them", "we were suspended"],
)
def test_a_silent_actor_is_left_only_if_it_is_silent_and_another_has_its_experts(
    placement: dict[str, list[int]], meanwhile: list[Event], polls: int, poll_s: float, lost: int
):
    clock, step = Clock(), Step(6)
    transport = Slow(clock, polls, poll_s, meanwhile)
    exchange = Exchange(transport, view(1, placement), answer_timeout_s=1e6, clock=clock)
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert exchange.counters.lost_actors == lost
    if lost:
        assert clock.now_s < 1000.0 + 2 * SILENCE_S


def test_a_silent_actor_without_a_replica_is_left_when_a_newer_view_names_its_successor():
    clock, step = Clock(), Step(6)
    transport = Slow(clock, 10**6, 0.1, [])
    later = view(2, {"b": ALL[4:], "c": ALL[:4]})
    news = [later, None, None]
    exchange = Exchange(
        transport, view(1, HALVES), next_view=lambda: news.pop(), answer_timeout_s=1e6, clock=clock
    )
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert exchange.view is later


def test_signs_of_life_do_not_replace_an_answer_for_ever():
    clock, step = Clock(), Step(6)
    transport = Slow(clock, 10**6, 0.1, [A_LIVES])
    exchange = Exchange(transport, view(1, COPIES), answer_timeout_s=5.0, clock=clock)
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert exchange.counters.lost_actors == 1


def test_who_was_lost_is_tried_again_after_a_while():
    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        is_first = name == "a" and parcel.key.step == 1
        return [Lost(actor=name, reason="scripted") if is_first else answer(name, parcel)]

    clock, step, transport = Clock(), Step(6), Scripted(react)
    exchange = Exchange(transport, view(1, COPIES), clock=clock)
    for _ in range(2):
        step.run(exchange)
    clock.now_s += FORGET_S
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert {name for name, parcel in transport.posted if parcel.key.step == 2} == {"b"}
    assert {name for name, parcel in transport.posted if parcel.key.step == 3} == {"a", "b"}


def test_between_steps_losses_are_heard_and_what_nobody_waits_for_is_dropped():
    step, transport = Step(6), Scripted()
    exchange = Exchange(transport, view(1, COPIES))
    transport.events = [Lost(actor=ActorId("a"), reason="scripted"), Alive(actor=ActorId("b"))]
    exchange.hear()
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert {name for name, _ in transport.posted} == {"b"}


def rubbish(name: ActorId, parcel: Parcel, value: float = float("nan")) -> Returned:
    rows_PD = expert_rows(parcel)
    rows_PD[-1, 0] = value
    return Returned(actor=name, key=parcel.key, rows_PD=rows_PD)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_asked_of_another_who_convicts_their_author(value: float):
    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        return [rubbish(name, parcel, value) if name == "a" else answer(name, parcel)]

    step, transport = Step(6), Scripted(react)
    exchange = Exchange(transport, view(1, COPIES))
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert {(life.actor_id, life.incarnation) for life in exchange.convicted} == {("a", 1)}
    num_posted = len(transport.posted)
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert {name for name, _ in transport.posted[num_posted:]} == {"b"}, "who is convicted is not asked"


def test_without_a_replica_rubbish_is_asked_again_of_the_same_actor():
    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        return [rubbish(name, parcel) if name == "a" and not parcel.key.attempt else answer(name, parcel)]

    step = Step(6)
    exchange = Exchange(Scripted(react), view(1, HALVES))
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert (exchange.counters.lost_actors, exchange.convicted) == (0, frozenset())


@pytest.mark.parametrize("placement", [HALVES, COPIES, {"a": ALL, "b": ALL, "c": ALL}])
def test_what_every_copy_says_is_so_and_nobody_is_lost_for_it(placement: dict[str, list[int]]):
    """An overflow is the model's own doing: the request fails, the experts do not."""

    def overflow(name: ActorId, parcel: Parcel) -> list[Event]:
        returned = answer(name, parcel)
        returned.rows_PD[torch.from_numpy(parcel.expert_P) == 5] = torch.inf
        return [returned]

    step, transport = Step(6), Scripted(overflow)
    exchange = Exchange(transport, view(1, placement))
    for _ in range(2):
        is_finite = torch.isfinite(step.run(exchange)).all(-1)
        assert torch.equal(is_finite, (step.experts_TK != 5).all(-1))
    assert exchange.convicted == frozenset()
    assert {name for name, parcel in transport.posted if parcel.key.step == 2} == set(placement)


def test_rows_that_were_not_finite_when_they_left_prove_nothing():
    step, transport = Step(6), Scripted()
    step.rows_TD[2, 3] = torch.nan
    exchange = Exchange(transport, view(1, COPIES))
    summed_TD = step.run(exchange)
    assert torch.isfinite(summed_TD).all(-1).tolist() == [row != 2 for row in range(6)]
    assert exchange.counters.doubted_pairs == 0


@pytest.mark.parametrize("first", [{"b": ALL[4:]}, {}, {"a": ALL[:4], "b": ALL[4:]}])
def test_without_a_replica_the_step_parks_until_a_newer_view_and_then_sums_the_same(first):
    """Whether the experts were missing from the start, or all of them, or got lost on the way."""
    step, asked = Step(8), []

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        if name == "a" and parcel.key.epoch == 1:
            return [Lost(actor=name, reason="scripted")]
        return [answer(name, parcel)]

    transport = Scripted(react)

    def next_view() -> View | None:
        asked.append(len(transport.posted))
        news = {5: view(1, HALVES), 6: view(0, HALVES), 7: view(2, HALVES)}
        return news.get(len(asked))

    exchange = Exchange(transport, view(1, first), next_view=next_view)
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert len(asked) == 7  # neither the same epoch nor an older one brought it back
    assert [seen.epoch for seen in transport.views] == [1, 2]
    assert exchange.view.epoch == 2
    assert exchange.counters.parked_s > 0.0


def test_rows_that_were_parked_one_after_the_other_come_back_to_their_own_places():
    """All of them from one actor, whose answer is taken as a whole."""
    step = Step(8)

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        return [Lost(actor=name, reason="scripted")] if parcel.key.epoch == 1 else [answer(name, parcel)]

    news = [view(2, {"only": ALL}), None]
    exchange = Exchange(Scripted(react), view(1, HALVES), next_view=lambda: news.pop() if news else None)
    assert torch.equal(step.run(exchange), step.undisturbed())


def test_rows_parked_at_different_times_come_back_to_their_places_from_one_actor():
    """Both copies died, the second one's rows first; one that holds everything took their place."""
    step, transport = Step(8), Scripted()

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        if parcel.key.epoch == 1:
            both = [Lost(actor=ActorId(one), reason="scripted") for one in "ba"]
            return both if len(transport.posted) == 2 else []
        return [answer(name, parcel)]

    transport.react = react
    news = [view(2, {"c": ALL}), None, None]
    exchange = Exchange(transport, view(1, HALVES), next_view=lambda: news.pop() if news else None)
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert len(transport.posted[-1][1].row_P) == 8 * TOP, "all in one parcel"


def test_what_other_actors_owe_when_a_newer_view_comes_is_asked_for_again():
    """The new view may have dropped their connections, and with them the answers."""
    step = Step(8)

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        if parcel.key.epoch == 1:
            return [Lost(actor=name, reason="scripted")] if name == "a" else []
        return [answer(name, parcel)]

    news = [view(2, HALVES), None, None]
    exchange = Exchange(Scripted(react), view(1, HALVES), next_view=lambda: news.pop() if news else None)
    assert torch.equal(step.run(exchange), step.undisturbed())


def test_a_parked_step_tries_its_lost_actors_again_after_a_while(monkeypatch: pytest.MonkeyPatch):
    """A hiccup that nobody else noticed brings no newer view; it must not park a step for ever."""
    monkeypatch.setattr(exchange_module, "FORGIVE_S", 0.05)
    failures = ["once", "twice"]

    def react(name: ActorId, parcel: Parcel) -> list[Event]:
        if name == "a" and failures:
            return [Lost(actor=name, reason=failures.pop())]
        return [answer(name, parcel)]

    step, transport = Step(8), Scripted(react)
    exchange = Exchange(transport, view(1, HALVES))
    assert torch.equal(step.run(exchange), step.undisturbed())
    assert [seen.epoch for seen in transport.views] == [1, 1, 1]


def test_a_newer_view_is_adopted_between_steps():
    step, transport = Step(3), Scripted()
    news = [view(3, {"b": ALL}), view(2, HALVES), None]
    exchange = Exchange(transport, view(1, {"a": ALL}), next_view=lambda: news.pop())
    for _ in range(3):
        assert torch.equal(step.run(exchange), step.undisturbed())
    assert [name for name, _ in transport.posted] == ["a", "a", "b", "b"]


@pytest.mark.parametrize("placement", [{"a": ALL}, {"b": ALL[:2]}, {}])
def test_a_waiting_or_parked_step_is_abandoned_when_told_to_stop(placement: dict[str, list[int]]):
    polls = []

    class Silent(Scripted):
        def poll(self, timeout_s: float) -> list[Event]:
            polls.append(timeout_s)
            return []

    exchange = Exchange(Silent(), view(1, placement), should_stop=lambda: len(polls) >= 3)
    with pytest.raises(StepAbandoned):
        Step(2).run(exchange)
    assert len(polls) == 3


# From here on the real thing: TcpTransport, ExpertServer, the tiny model.

GREEDY = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True, logprobs=0)
PROMPTS = [[20, 30, 40], list(range(16, 116)), [99] * 40, *([50 + n] * 3 for n in range(6))]


@pytest.fixture(scope="module")
def undisturbed(tiny_v32: Path) -> list[Generated]:
    return generate(local_engine(tiny_v32), PROMPTS, GREEDY)


class Fleet:
    """Expert servers in threads, and an engine that dispatches to them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.config, self.decoder, self._checkpoint = load(directory)
        self._stack = stack
        self.news: View | None = None

    def start(self, name: str, experts, incarnation: int = 1, life: ExitStack | None = None) -> ExpertActor:
        held = experts_of(self._checkpoint, experts)
        server = ExpertServer(self.config, held, actor_id=name, incarnation=incarnation, token=TOKEN)
        (life or self._stack).enter_context(running(server))
        return actor(name, incarnation, server.port)

    def engine(
        self,
        view: View,
        answer_timeout_s: float = 10.0,
        token: bytes = TOKEN,
        micro_batches: MicroBatches = 1,
    ) -> Engine:
        transport = TcpTransport(token=token, actor="attention-0", incarnation=1)
        self._stack.callback(transport.close)
        self.exchange = Exchange(
            transport, view, next_view=lambda: self.news, answer_timeout_s=answer_timeout_s
        )
        runner = Runner(self.decoder, self.exchange, num_pages=64, micro_batches=micro_batches)
        return Engine(runner, context_tokens=CONTEXT)


@pytest.fixture(name="fleet")
def _fleet(tiny_v32: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(tiny_v32, stack)


@contextmanager
def expert_process(
    directory: Path, name: str, experts
) -> Iterator[tuple[ExpertActor, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tests.unit.expert_process", str(directory), name, TOKEN.decode()]
    process = subprocess.Popen(
        [*command, *map(str, experts)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        yield actor(name, port=int(process.stdout.readline())), process
    finally:
        process.kill()
        process.communicate()


def run_with(engine: Engine, faults: dict[int, Callable[[], None]]) -> list[Generated]:
    """generate, but before the given steps something happens."""
    plain_step, count = engine.step, 0

    def step():
        nonlocal count
        faults.pop(count, lambda: None)()
        count += 1
        return plain_step()

    engine.step = step  # type: ignore[method-assign]
    results = generate(engine, PROMPTS, GREEDY)
    assert not faults, "the run was too short for all its faults"
    return results


def test_a_process_frozen_then_thawed_then_killed_while_it_owes_rows_changes_no_token(
    fleet: Fleet, tiny_v32: Path, undisturbed: list[Generated]
):
    everything = range(fleet.config.num_experts)
    with expert_process(tiny_v32, "expert-0", everything) as (doomed, process):
        actors = [doomed, fleet.start("expert-1", everything)]
        engine = fleet.engine(view_of(fleet.config, 1, actors, [everything, everything]))
        lost: list[int] = []

        def freeze() -> None:  # rows go into its socket and no answer comes in time
            process.send_signal(signal.SIGSTOP)

        def thaw() -> None:  # now its answers come, too late
            lost.append(fleet.exchange.counters.lost_actors)
            process.send_signal(signal.SIGCONT)

        def take_back() -> None:
            fleet.news = view_of(fleet.config, 2, actors, [everything, everything])

        def freeze_then_kill() -> None:  # the connection breaks in mid-step
            process.send_signal(signal.SIGSTOP)
            threading.Timer(0.1, process.kill).start()

        faults = {3: freeze, 5: thaw, 8: take_back, 12: freeze_then_kill}
        assert run_with(engine, faults) == undisturbed
    assert lost == [1]
    assert fleet.exchange.counters.lost_actors == 2
    assert fleet.exchange.counters.retried_pairs > 0


def test_an_expert_that_ends_with_rows_in_hand_or_half_answered_changes_no_token(
    fleet: Fleet, tiny_v32: Path, undisturbed: list[Generated]
):
    everything = range(fleet.config.num_experts)
    points = ("rows-received", "rows-computed", "answer-sent")
    with ExitStack() as lives:
        doomed = [
            lives.enter_context(expert_process(tiny_v32, "expert-0", [*everything, f"{point}@20"]))
            for point in points
        ]
        other = fleet.start("expert-1", everything)
        for expert, process in doomed:
            engine = fleet.engine(view_of(fleet.config, 1, [expert, other], [everything, everything]))
            assert generate(engine, PROMPTS, GREEDY) == undisturbed
            assert process.wait(10) == -signal.SIGKILL
            assert fleet.exchange.counters.lost_actors == 1
            assert fleet.exchange.counters.retried_pairs > 0


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_loss_of_the_only_holder_parks_the_step_until_its_successor_serves(
    fleet: Fleet, undisturbed: list[Generated], micro_batches: MicroBatches
):
    low, high = even_placement(fleet.config.num_experts, 2)
    other = fleet.start("expert-1", high)
    with ExitStack() as life:
        doomed = fleet.start("expert-0", low, life=life)
        engine = fleet.engine(
            view_of(fleet.config, 1, [doomed, other], [low, high]), micro_batches=micro_batches
        )

        def end_and_replace() -> None:
            life.close()
            successor = fleet.start("expert-0", low, incarnation=2)
            later = view_of(fleet.config, 2, [successor, other], [low, high])
            threading.Timer(0.1, lambda: setattr(fleet, "news", later)).start()

        assert run_with(engine, {6: end_and_replace}) == undisturbed
    assert fleet.exchange.counters.parked_s > 0.0


def test_a_transport_connects_to_the_life_that_the_view_names(fleet: Fleet):
    everything = range(fleet.config.num_experts)
    old = fleet.start("expert-0", everything, incarnation=1)
    claimed = ExpertActor(actor_id=old.actor_id, incarnation=2, host=old.host, port=old.port)
    transport = TcpTransport(token=TOKEN, actor="attention-0", incarnation=1)
    transport.set_view(view_of(fleet.config, 1, [claimed], [everything]))
    [event] = transport.poll(0)
    assert isinstance(event, Lost)
    assert "life 1" in event.reason
    transport.close()


def test_a_transport_with_another_token_loses_every_actor(fleet: Fleet):
    everything = range(fleet.config.num_experts)
    place = fleet.start("expert-0", everything)
    transport = TcpTransport(token=b"wrong", actor="attention-0", incarnation=1)
    transport.set_view(view_of(fleet.config, 1, [place], [everything]))
    assert [type(event) for event in transport.poll(0)] == [Lost]
    transport.close()


def test_posting_to_an_actor_that_is_not_connected_is_a_loss_not_an_error():
    transport = TcpTransport(token=TOKEN, actor="attention-0", incarnation=1)
    nobody = actor("gone", port=1)
    transport.set_view(
        make_view(1, [nobody], {nobody.actor_id: ALL}, num_experts=EXPERTS, first_layer=0, num_layers=1)
    )
    [event] = transport.poll(0)
    assert isinstance(event, Lost)
    step = Step(1)
    parcel = Parcel(
        key=DispatchKey(epoch=1, step=1, layer=0, micro_batch=0, attempt=0),
        rows_RD=step.rows_TD,
        row_P=np.zeros(1, dtype=np.int32),
        expert_P=np.zeros(1, dtype=np.int32),
    )
    transport.post(nobody.actor_id, parcel)
    assert [type(event) for event in transport.poll(0)] == [Lost]
    transport.close()


def test_local_experts_answer_in_process(tiny_v32: Path):
    _, _, checkpoint = load(tiny_v32)
    exchange = local_exchange(checkpoint.reader(), checkpoint.config, torch.float32, "local")
    config = checkpoint.config
    held = experts_of(checkpoint, range(config.num_experts))
    rows_TD = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(0))
    experts_TK = torch.tensor([[0, 5], [1, 5], [30, 31]])
    weights_TK = torch.tensor([[0.5, 2.0], [1.0, 1.0], [0.25, 0.0]])
    exchange.begin_step()
    ticket = exchange.dispatch(config.num_dense_layers, rows_TD, experts_TK)
    summed_TD = exchange.combine(ticket, weights_TK)
    row_P = np.repeat(np.arange(3, dtype=np.int32), 2)
    rows_PD = held.shard.forward_reference(
        config.num_dense_layers, rows_TD, row_P, experts_TK.reshape(-1).numpy().astype(np.int32)
    )
    expected = (rows_PD.view(3, 2, -1) * weights_TK[:, :, None]).sum(1)
    torch.testing.assert_close(summed_TD, expected)
