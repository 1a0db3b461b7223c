"""Whatever dies, hangs and wakes up again: rows that a step takes are those of this step, from the living."""

from __future__ import annotations

import ctypes
from itertools import count

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from kernels.boxes import LATE, LAYER, ROWS
from kernels.fp8_rows import Fp8Rows
from kernels.mailbox import Posted, answer, collect
from router.lanes import Life
from router.shm import Geometry
from tests.gpu.interpreter import interpreting
from tests.mailboxes import TICK_NS, asker_mailbox, expert_mailbox, join

CPU = torch.device("cpu")
WIDTH, EXPERTS, TOP, LAYERS = 128, 4, 2, 2
GEOMETRY = Geometry(slots=2, capacity=2, width=WIDTH, per_row=TOP, places=TOP + 1)
ASKER = Life(actor="a", incarnation=1)

FATES = st.sampled_from(["answers", "answers", "answers", "dies", "hangs"])
STEPS = st.lists(
    st.fixed_dictionaries(
        {
            "slot": st.integers(0, 1),
            "rows": st.integers(1, 2),
            "layer": st.integers(0, LAYERS - 1),
            "fates": st.tuples(FATES, FATES),
            "wakes": st.booleans(),
        }
    ),
    min_size=1,
    max_size=3,
)


def expected(tag: int, expert: int, layer: int) -> int:
    """What an expert makes of a row: one number, 128 times."""
    return (tag * 7 + expert * 97 + layer * 1009) % 30_000


class Actor:
    """One life of an expert actor."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.mailbox = expert_mailbox(GEOMETRY, 1, CPU)

    def turn(self) -> None:
        inbox = self.mailbox.inbox
        collect(inbox, torch.empty(0, dtype=torch.int32))
        for box, sequence in enumerate(inbox.claimed.tolist()):
            if not sequence:
                continue
            layer, rows = int(inbox.heads[box, LAYER]), int(inbox.heads[box, ROWS])
            for row in range(rows):
                at = box * GEOMETRY.capacity + row
                tag = int(inbox.rows.values_RK[at].view(torch.int32)[0])
                for place, expert in enumerate(inbox.experts[at].tolist()):
                    if expert >= 0:
                        out = torch.full((WIDTH,), expected(tag, expert, layer), dtype=torch.int16)
                        pair = row * GEOMETRY.places + place
                        address = int(inbox.back[box, 0]) + pair * WIDTH * 2
                        ctypes.memmove(address, out.data_ptr(), WIDTH * 2)
        answer(inbox)


class World:
    """An asker, and two seats of expert actors whose lives come and go."""

    def __init__(self) -> None:
        self.asker = asker_mailbox(GEOMETRY, 4, (LAYERS, EXPERTS), CPU)
        self.asker.patience.fill_(20 * TICK_NS)
        self._lives = count(1)
        self.seats = [self._born(seat) for seat in range(2)]
        self.hung: list[Actor] = []
        self._tags = count(1)
        self._own()

    def step(self, slot: int, rows: int, layer: int, fates: tuple[str, str], *, wakes: bool) -> None:
        x = Fp8Rows(torch.zeros(rows, WIDTH, dtype=torch.float8_e4m3fn), torch.ones(1, rows))
        tags = [next(self._tags) for _ in range(rows)]
        x.values_RK.view(torch.int32)[:, 0] = torch.tensor(tags, dtype=torch.int32)
        experts = torch.tensor([[row % 2, 2 + row % 2] for row in range(rows)], dtype=torch.int32)
        away = Posted(self.asker.outboxes[slot])
        away.post(x, experts, layer)
        silent = self._meet(fates)
        away.wait()
        assert self.asker.found_lost(self.asker.lost) == dict.fromkeys((one.life for one in silent), LATE)
        if silent:
            self._replace(silent)
            away.post(x, experts, layer)
            if wakes:  # it answers what it was asked before, into a lane that nobody reads
                for one in self.hung:
                    one.turn()
            self._meet(("answers", "answers"))
            away.wait()
            assert not self.asker.found_lost(self.asker.lost)
        came = self._home(slot, rows)
        for row, tag in enumerate(tags):
            for place, expert in enumerate(experts[row].tolist()):
                assert set(came[row, place].tolist()) == {expected(tag, expert, layer)}

    def _born(self, seat: int) -> Actor:
        born = Actor(Life(actor=f"x{seat}", incarnation=next(self._lives)))
        join(self.asker, ASKER, born.mailbox, born.life)
        return born

    def _own(self) -> None:
        owners = [self.seats[expert % 2].life for expert in range(EXPERTS)]
        self.asker.set_owners(dict.fromkeys(range(LAYERS), owners))

    def _meet(self, fates: tuple[str, str]) -> list[Actor]:
        """Each actor's fate before its turn; those that said nothing though they were asked."""
        silent = []
        for one, fate in zip(self.seats, fates, strict=True):
            if fate == "answers":
                one.turn()
                continue
            silent.append(one)
            if fate == "hangs":
                self.hung.append(one)
        return silent

    def _replace(self, silent: list[Actor]) -> None:
        for one in silent:
            self.asker.lose(one.life)
            if one not in self.hung:
                self.asker.bury(one.life)
        while len(self.hung) > 1:  # there is one lane more than two seats need
            self.asker.bury(self.hung.pop(0).life)
        self.seats = [self._born(seat) if one in silent else one for seat, one in enumerate(self.seats)]
        self._own()

    def _home(self, slot: int, rows: int) -> Tensor:
        """int16 [R, K, D], each place from the lane that the parcel noted."""
        outbox = self.asker.outboxes[slot]
        answers = outbox.answers.view(torch.int16).view(outbox.num_lanes, -1, GEOMETRY.places, WIDTH)
        lanes = outbox.lanes[:rows, :TOP].long()
        return answers[lanes, torch.arange(rows)[:, None], torch.arange(TOP)[None]]


@given(STEPS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_schedule_of_deaths_hangs_and_late_answers_changes_a_row(
    monkeypatch: pytest.MonkeyPatch, steps: list[dict[str, object]]
) -> None:
    ticks = count(0, TICK_NS)
    monkeypatch.setattr("kernels.mailbox._now", lambda: next(ticks))
    with interpreting():
        world = World()
        for step in steps:
            world.step(**step)
