"""A helper thread: every unit of a job once, whoever claims it, and the bits of one thread."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from kernels.compiled import IS_COMPILED, address_of, indices
from kernels.crew import Helper, claim, helper, place
from kernels.few_rows import blocks_of, product
from kernels.rows import narrowed

pytestmark = pytest.mark.skipif(not IS_COMPILED, reason="no numba")

PATIENCE_S = 20.0  # until a helper has claimed something, on a machine that does much else


@address_of(17)
def NOTE(
    claimed_at: int,
    side: int,
    units: int,
    times_at: int,
    sides_at: int,
    a0: int,
    a1: int,
    a2: int,
    a3: int,
    a4: int,
    a5: int,
    a6: int,
    a7: int,
    a8: int,
    a9: int,
    a10: int,
    a11: int,
) -> None:
    """Of each unit how often it was computed; of each side how many."""
    number = 0
    while claim(claimed_at, units):
        indices(times_at, units)[place(units, side, number)] += 1
        number += 1
    indices(sides_at, 2)[side] += number


def noted(crew: Helper, units: int) -> tuple[np.ndarray, np.ndarray]:
    times, sides = np.zeros(units, np.int64), np.zeros(2, np.int64)
    crew.launch(NOTE, units, times.ctypes.data, sides.ctypes.data, *[0] * 12)
    return times, sides


def test_without_a_helper_the_leader_computes_every_unit() -> None:
    times, sides = noted(Helper(), 9)
    assert (times == 1).all() and sides.tolist() == [9, 0]


def test_every_unit_is_computed_once_and_a_helper_takes_some() -> None:
    crew, helped, end_s = Helper(), 0, time.monotonic() + PATIENCE_S
    crew.start()
    while helped < 5 and time.monotonic() < end_s:
        crew.wake()
        times, sides = noted(crew, 20_000)
        assert (times == 1).all() and sides.sum() == 20_000
        helped += bool(sides[1])
    assert helped == 5


def test_a_helper_that_sleeps_is_not_waited_for() -> None:
    crew = Helper()
    crew.start()
    times, sides = noted(crew, 50)
    assert (times == 1).all() and sides.tolist() == [50, 0]


def test_two_leaders_at_once_get_their_own_units() -> None:
    crew = Helper()
    crew.start()
    failures: list[int] = []

    def lead(units: int) -> None:
        for _ in range(300):
            crew.wake()
            times, sides = noted(crew, units)
            if not (times == 1).all() or sides.sum() != units:
                failures.append(units)

    threads = [threading.Thread(target=lead, args=(units,)) for units in (700, 1100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_product_has_the_same_bits_with_a_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(512, 416)
    if blocks is None:
        pytest.skip("a BLAS that cuts its sums in an unknown way")
    weight = narrowed(torch.randn(512, 416).bfloat16().float())
    x_RK, crew = torch.randn(5, 512), Helper()
    alone = product(x_RK, weight, blocks)
    assert helper().board_at == 0
    crew.start()
    monkeypatch.setattr("kernels.few_rows.helper", lambda: crew)
    for _ in range(300):
        crew.wake()
        assert torch.equal(product(x_RK, weight, blocks), alone)
