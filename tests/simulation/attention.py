"""Attention actors of the simulation: the real exchange, and steps whose sums are known.

Each layer of each step is checked: every pair answered, by the expert that the gate chose, within a bounded
time after the last thing went wrong. Knows nothing of the faults.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from actors.attention import ViewInbox
from actors.step import in_turns
from router.exchange import Exchange, StepAbandoned, Ticket
from router.transport import Returned
from tests.simulation.experts import FIRST_LAYER, HIDDEN, NUM_EXPERTS, answers
from tests.simulation.schedule import Schedule, Shape
from tests.simulation.wire import Wire
from tests.simulation.world import World

TOP = 2
ANSWER_S = 5.0
PATIENCE_S = 30.0  # after the last trouble: twice an answer that never comes and a second chance
STEPS = 2


@dataclass(frozen=True)
class Work:
    """Some tokens with their gate's choice, and what must come of it."""

    rows_TD: Tensor
    experts_TK: Tensor
    weights_TK: Tensor
    expected_TD: Tensor


@cache
def work(step: int, layer: int, micro_batch: int) -> Work:
    generator = torch.Generator().manual_seed(1000 * micro_batch + 100 * step + layer)
    num_tokens = 1 + (step + layer + micro_batch) % 4
    rows_TD = torch.randint(-8, 9, (num_tokens, HIDDEN), generator=generator).float()
    chosen = torch.rand(num_tokens, NUM_EXPERTS, generator=generator).topk(TOP).indices
    experts_TK = chosen.sort(-1).values
    weights_TK = torch.randint(1, 9, (num_tokens, TOP), generator=generator) / 4
    rows_TKD = answers(
        layer,
        rows_TD,
        np.repeat(np.arange(num_tokens, dtype=np.int32), TOP),
        experts_TK.reshape(-1).numpy().astype(np.int32),
    ).view(num_tokens, TOP, HIDDEN)
    return Work(rows_TD, experts_TK, weights_TK, (rows_TKD * weights_TK[:, :, None]).sum(1))


class Attention:
    """One attention actor."""

    def __init__(self, world: World, exchange_type: type[Exchange] = Exchange) -> None:
        self.num_steps = 0
        self.is_at_rest = True
        self.longest_s = 0.0  # of a step
        self._world = world
        self._views = ViewInbox()
        self.wire = Wire(world, self._views.put)
        self._started_s = 0.0
        self.exchange = exchange_type(
            self.wire,
            world.controller.view(),
            next_view=self._views.newest,
            should_stop=self._has_waited_too_long,
            answer_timeout_s=ANSWER_S,
            clock=lambda: world.now_s,
        )
        self._placed: defaultdict[int, Counter[int]] = defaultdict(Counter)  # by ticket, pair
        self._watch_places()

    def step(self) -> None:
        """Every layer once."""
        world = self._world
        self.is_at_rest = False
        self.num_steps += 1
        self._started_s = world.now_s
        newest = self._views.newest()
        self.exchange.begin_step()
        assert newest is None or self.exchange.view.epoch >= newest.epoch, "an old view is gone on with"
        in_turns([self._walk(micro_batch) for micro_batch in range(world.shape.micro_batches)])
        self.longest_s = max(self.longest_s, world.now_s - self._started_s)
        self.is_at_rest = True

    def _walk(self, micro_batch: int) -> Generator[None, None, None]:
        """Through the layers, as actors/step.py goes."""
        exchange = self.exchange
        for layer in range(FIRST_LAYER, FIRST_LAYER + self._world.shape.layers):
            if seconds := self._world.shape.attention_s / self._world.shape.micro_batches:
                self._world.let_pass(seconds, lambda: False)
            todo = work(self.num_steps, layer, micro_batch)
            ticket = exchange.dispatch(layer, todo.rows_TD, todo.experts_TK, micro_batch)
            ticket.returned_PD.fill_(torch.nan)  # what nobody answers cannot pass for an answer
            yield
            try:
                summed_TD = exchange.combine(ticket, todo.weights_TK)
            except StepAbandoned:
                raise AssertionError(f"step {self.num_steps} hangs") from None
            assert torch.equal(summed_TD, todo.expected_TD), "another sum"
            placed, asked = self._placed.pop(id(ticket)), range(todo.experts_TK.numel())
            assert placed == Counter(asked), "a pair was answered more or less often than once"

    def _watch_places(self) -> None:
        """Count how often the exchange takes an answer for each pair."""
        place = self.exchange._place

        def watched(ticket: Ticket, event: Returned) -> None:
            asked = ticket.waiting.get(event.key)
            place(ticket, event)
            is_fit = event.rows_PD.shape[1] == HIDDEN  # else it is refused
            if is_fit and asked is not None and event.key not in ticket.waiting:
                self._placed[id(ticket)].update(asked[1].tolist())

        self.exchange._place = watched

    def _has_waited_too_long(self) -> bool:
        return self._world.now_s > max(self._started_s, self._world.calm_s) + PATIENCE_S


def simulate(shape: Shape, schedule: Schedule, exchange_type: type[Exchange] = Exchange) -> list[Attention]:
    """Two attention actors take steps in turn while what is scheduled happens; then one each in peace."""
    world = World(shape, schedule)
    actors = [Attention(world, exchange_type) for _ in range(2)]

    def let_others_step() -> None:
        for actor in actors:
            if actor.is_at_rest:
                actor.step()
        world.calm_s = max(world.calm_s, world.now_s)  # whoever was waiting could not look

    world.others = let_others_step
    for _ in range(STEPS):
        for actor in actors:
            actor.step()
    world.calm_down()
    for actor in actors:
        actor.step()
        check_history(actor, world)
    return actors


def check_history(actor: Attention, world: World) -> None:
    """Names are never used twice, and epochs go up to that of the view that holds now."""
    keys = [parcel.key for _, parcel in actor.wire.posted]
    assert len(set(keys)) == len(keys), "a name was used twice"
    epochs = [key.epoch for key in keys]
    assert epochs == sorted(epochs), "back to an older view"
    assert actor.exchange.view.epoch == world.controller.view().epoch == epochs[-1], (
        "an old epoch is not retired"
    )
    newest = set(world.controller.view().actors)
    assert {life for life, parcel in actor.wire.posted if parcel.key.epoch == epochs[-1]} <= newest
