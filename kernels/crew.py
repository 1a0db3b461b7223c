"""A second thread for loops that are cut into units, without Python between the two.

The leader posts a job on a board, both claim its units, one from the front and one from the back, and the
leader goes on when all are done. A helper that sleeps is not waited for; one that is awake spins, so that a
step finds it ready, and falls asleep when nothing comes. Without one the leader claims every unit itself.
Which thread computed a unit changes no bit. Knows nothing of what a job computes.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np

from kernels.compiled import IS_COMPILED, call_at, compiled, indices, inlined, intrinsic

if IS_COMPILED:
    from llvmlite import ir
    from numba import types
    from numba.np.unsafe.ndarray import to_fixed_tuple

    _WORD_POINTER = ir.IntType(64).as_pointer()

PATIENCE = 2_000_000  # looks at the board without a job: a few milliseconds
# On a board, eight words apart so that they share no cache line. TURN is even while a job is open.
_TURN, _INSIDE, _CLAIMED, _JOB, _LEADERS = (8 * word for word in range(5))
_GIVEN = 48  # and from here on one after another: what a job is given
_WORDS = 64


class Helper:
    """One thread more for this process, from `start` on; a daemon, for it holds nothing."""

    def __init__(self) -> None:
        self._board = np.zeros(_WORDS, dtype=np.int64)
        self._board[_TURN] = 1
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def board_at(self) -> int:
        """0: there is none."""
        return 0 if self._thread is None else int(self._board.ctypes.data)

    def start(self) -> None:
        if self._thread is None and IS_COMPILED:
            self._thread = threading.Thread(target=self._serve, name="helper", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """A step begins."""
        if self._thread is not None:
            self._awake.set()

    def launch(self, job_at: int, units: int, *arguments: int) -> None:
        """Compute every unit of a job: address_of(17), of what `claim` and `place` want, and 14 arguments."""
        run_job(self.board_at if units > 1 else 0, job_at, units, *arguments)

    def _serve(self) -> None:
        while True:
            self._awake.wait()
            self._awake.clear()
            _help(self._board.ctypes.data, PATIENCE)


@cache
def helper() -> Helper:
    """The process's, as torch's threads are the process's; asleep until somebody starts it."""
    return Helper()


@intrinsic
def _load(typing_context: Any, at: Any) -> Any:
    """The word at an address; no thread sees its reads and writes in another order than these calls."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(operands[0], _WORD_POINTER), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def _add(typing_context: Any, at: Any, value: Any) -> Any:
    """Add to the word at an address; what was there."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        at = builder.inttoptr(operands[0], _WORD_POINTER)
        return builder.atomic_rmw("add", at, operands[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@inlined
def claim(claimed_at: int, units: int) -> bool:
    """Whether one unit more is the caller's: its next one, from its side."""
    return bool(_add(claimed_at, 1) < units)


@inlined
def place(units: int, side: int, number: int) -> int:
    """Which unit a side's number-th claim is: the leader's from the front, the helper's from the back."""
    return units - 1 - number if side else number


@compiled("void(int64" + 16 * ", int64" + ")")
def run_job(
    board_at: int,
    job_at: int,
    units: int,
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
    a12: int,
    a13: int,
) -> None:
    """board_at: of a helper, or 0."""
    leaders, alone = board_at + 8 * _LEADERS, np.zeros(1, np.int64)
    given = (units, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13)
    if board_at and _add(leaders, 1) == 0:
        board, turn, claimed_at = indices(board_at, _WORDS), board_at + 8 * _TURN, board_at + 8 * _CLAIMED
        board[_CLAIMED], board[_JOB] = 0, job_at
        for place_of in range(15):
            board[_GIVEN + place_of] = given[place_of]
        _add(turn, 1)
        call_at(job_at, (claimed_at, 0, *given))
        _add(turn, 1)
        while _load(board_at + 8 * _INSIDE) != 0:
            pass
    else:  # no helper, or another thread has it
        call_at(job_at, (alone.ctypes.data, 0, *given))
    if board_at:
        _add(leaders, -1)
    alone[0] = 0  # by address it was in use until here


@compiled("void(int64, int64)")
def _help(board_at: int, patience: int) -> None:
    """Until nothing has come for so many looks."""
    board, last, looks = indices(board_at, _WORDS), 0, 0
    turn, inside, claimed_at = board_at + 8 * _TURN, board_at + 8 * _INSIDE, board_at + 8 * _CLAIMED
    while looks < patience:
        looks += 1
        seen = _load(turn)
        if seen % 2 or seen == last:
            continue
        _add(inside, 1)
        if _load(turn) == seen:  # else it was closed meanwhile: the leader may be writing the next
            given = to_fixed_tuple(board[_GIVEN : _GIVEN + 15], 15)
            call_at(board[_JOB], (claimed_at, 1, *given))
            last, looks = seen, 0
        _add(inside, -1)
