"""Feed-forward networks of few rows: one, or many of which each has its own rows.

Every product is kernels/few_rows.py's; what lies between is here, so that a network, or all experts of a
layer, are one call. Knows nothing of layers and slots.

Letters: R rows  P (row, expert) pairs  D hidden  F expert width  G networks that are used
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kernels.compiled import Floats, address_of, compiled, exponential, floats, indices, inlined, shorts
from kernels.crew import claim, helper, place
from kernels.few_rows import PRODUCT, Lie, multiply_panel, multiply_rows
from kernels.panel import ADD, PANEL

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def experts(
    x_RD: Tensor,
    row_P: NDArray[np.int32],
    order_P: NDArray[np.int64],
    end_G: NDArray[np.int64],
    lie_GX: NDArray[np.int64],
) -> Tensor:
    """[P, D]: of each pair its row through its network.

    order_P: pairs so that those of one network follow each other. end_G: where each network's begin in this
    order, and the end of all; lie_GX: [G, 8], `lie_of_product` of gate and up, and of down.
    """
    row_P = np.ascontiguousarray(row_P, dtype=np.int32)  # it goes by address
    out_PD = x_RD.new_empty(len(row_P), x_RD.shape[1])
    helper().launch(
        _EXPERTS,
        len(lie_GX),
        x_RD.data_ptr(),
        4 * x_RD.stride(0),
        row_P.ctypes.data,
        order_P.ctypes.data,
        lie_GX.ctypes.data,
        end_G.ctypes.data,
        x_RD.shape[1],
        out_PD.data_ptr(),
        ADD,
        0,
        0,
        0,
        0,
        0,
    )
    return out_PD


def mlp(x_RD: Tensor, up: Lie, down: Lie) -> Tensor:
    """[R, D] of contiguous rows through one network; up, down: `lie_of_product` of both weights."""
    num_rows, hidden = x_RD.shape
    out_RD = x_RD.new_empty(num_rows, hidden)
    _mlp(helper().board_at, x_RD.data_ptr(), num_rows, hidden, *up, *down, out_RD.data_ptr(), ADD, PRODUCT)
    return out_RD


def swiglu(gate_up_RF: Tensor) -> Tensor:
    """silu(first half) * second half of fp32 rows that lie one after another."""
    out_RF = gate_up_RF.new_empty(gate_up_RF.shape[0], gate_up_RF.shape[1] // 2)
    _swiglu_rows(gate_up_RF.data_ptr(), gate_up_RF.shape[0], out_RF.shape[1], out_RF.data_ptr())
    return out_RF


@inlined
def _swiglu(gate_up: Floats, width: int, out: Floats) -> None:
    for i in range(width):
        gate = gate_up[i]
        out[i] = gate / (_ONE + exponential(-gate)) * gate_up[width + i]


@compiled("void(int64, int64, int64, int64)")
def _swiglu_rows(gate_up_at: int, num_rows: int, width: int, out_at: int) -> None:
    gate_up, out = floats(gate_up_at, num_rows * 2 * width), floats(out_at, num_rows * width)
    for r in range(num_rows):
        _swiglu(gate_up[r * 2 * width :], width, out[r * width :])


@inlined
def _multiply_whole(
    x: int,
    num_rows: int,
    inner: int,
    w: int,
    itemsize: int,
    width: int,
    blocks: NDArray[np.int64],
    out: int,
    add: int,
) -> None:
    """The same of all columns, rows one after another."""
    for column in range(0, width, PANEL):
        to, dx, dout = out + 4 * column, 4 * inner, 4 * width
        multiply_panel(x, dx, num_rows, inner, w, itemsize, width, column, blocks, to, dout, add)


@address_of(17)
def _EXPERTS(  # noqa: N802
    claimed_at: int,
    side: int,
    units: int,
    x_at: int,
    dx: int,
    row_at: int,
    order_at: int,
    lie_at: int,
    end_at: int,
    hidden: int,
    out_at: int,
    add: int,
    unused_0: int,
    unused_1: int,
    unused_2: int,
    unused_3: int,
    unused_4: int,
) -> None:
    """A unit is one network with all of its pairs."""
    end, number = indices(end_at, units + 1), 0
    order, lie = indices(order_at, end[units]), indices(lie_at, 8 * units)
    rows = shorts(row_at, end[units])
    while claim(claimed_at, units):
        unit = place(units, side, number)
        first, count = end[unit], end[unit + 1] - end[unit]
        at = 8 * unit
        up, up_size, up_blocks = lie[at], lie[at + 1], indices(lie[at + 2], lie[at + 3])
        down, down_size, down_blocks = lie[at + 4], lie[at + 5], indices(lie[at + 6], lie[at + 7])
        x = np.empty(count * hidden, np.float32)
        width = down_blocks.sum()
        gate_up = np.empty(count * 2 * width, np.float32)
        between = np.empty(count * width, np.float32)
        x_own, gate_up_own, between_own = x.ctypes.data, gate_up.ctypes.data, between.ctypes.data
        for r in range(count):
            x[r * hidden : (r + 1) * hidden] = floats(x_at + dx * rows[order[first + r]], hidden)
        _multiply_whole(x_own, count, hidden, up, up_size, 2 * width, up_blocks, gate_up_own, add)
        for r in range(count):
            _swiglu(gate_up[r * 2 * width :], width, between[r * width :])
        _multiply_whole(between_own, count, width, down, down_size, hidden, down_blocks, x_own, add)
        for r in range(count):
            floats(out_at + 4 * hidden * order[first + r], hidden)[:] = x[r * hidden : (r + 1) * hidden]
        gate_up[0], between[0] = _ZERO, _ZERO  # by address they were in use until here
        number += 1


@compiled("void(int64" + 14 * ", int64" + ")")
def _mlp(
    board_at: int,
    x_at: int,
    num_rows: int,
    hidden: int,
    up_at: int,
    up_size: int,
    up_blocks: int,
    num_up: int,
    down_at: int,
    down_size: int,
    down_blocks: int,
    num_down: int,
    out_at: int,
    add: int,
    job: int,
) -> None:
    width = indices(down_blocks, num_down).sum()
    gate_up, between = np.empty(num_rows * 2 * width, np.float32), np.empty(num_rows * width, np.float32)
    at, dx = gate_up.ctypes.data, 4 * hidden
    multiply_rows(
        board_at, x_at, dx, num_rows, up_at, up_size, hidden, 2 * width, up_blocks, num_up, at, add, job
    )
    for r in range(num_rows):
        _swiglu(gate_up[r * 2 * width :], width, between[r * width :])
    at, dx = between.ctypes.data, 4 * width
    multiply_rows(
        board_at, at, dx, num_rows, down_at, down_size, width, hidden, down_blocks, num_down, out_at, add, job
    )
    between[0] = _ZERO  # by address it was in use until here
