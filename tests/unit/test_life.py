"""How long a process was silent when its end is noticed: at most so long nobody knew."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.life import HANG_S, Life
from cluster.processes import ProcessDied, Pulse

ALIVE = Pulse(has_ended=False, epoch=1, convicted=())
STEP_S = 0.25


class Pending:
    """An answer that comes when the test says so."""

    reference = None

    def __init__(self) -> None:
        self.answer: Pulse | ProcessDied | None = None

    def is_done(self) -> bool:
        return self.answer is not None

    def get(self) -> Any:
        if isinstance(self.answer, ProcessDied):
            raise self.answer
        return self.answer


class Asked:
    def __init__(self) -> None:
        self.asked: list[Pending] = []

    def ask(self, question: str, *_: object) -> Pending:
        assert question == "pulse"
        self.asked.append(Pending())
        return self.asked[-1]

    def end(self, pid: int | None) -> None:
        raise AssertionError("nobody is ended by a look")


@pytest.fixture(name="serving")
def _serving() -> tuple[Life, Asked]:
    process = Asked()
    life = Life(1, process)
    process.asked[-1].answer = ALIVE
    assert life.check(STEP_S, HANG_S) == ALIVE
    assert life.silent_s == 0.0
    return life, process


def test_a_death_went_unnoticed_since_the_last_pulse_at_most(serving: tuple[Life, Asked]):
    life, process = serving
    for _ in range(2):
        assert life.check(STEP_S, HANG_S) is None
    process.asked[-1].answer = ProcessDied("killed")
    assert life.check(STEP_S, HANG_S) == "died"
    assert life.silent_s == 3 * STEP_S


def test_a_hang_went_unnoticed_for_as_long_as_it_takes_to_call_it_one(serving: tuple[Life, Asked]):
    life, _ = serving
    looks = 1
    while life.check(STEP_S, HANG_S) is None:
        looks += 1
    assert life.silent_s == looks * STEP_S >= HANG_S


def test_a_pulse_ends_the_silence(serving: tuple[Life, Asked]):
    life, process = serving
    for _ in range(2):
        life.check(STEP_S, HANG_S)
        process.asked[-1].answer = ALIVE
        assert life.check(STEP_S, HANG_S) == ALIVE
        assert life.silent_s == 0.0
