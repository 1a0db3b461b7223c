"""Products of few rows, with the bits that the BLAS gives many.

A step of few rows waits for weights, and a BLAS makes it wait longer: it repacks them. Here a weight is read
once, and may lie in memory as bfloat16 where that is exact. Sums run in the order that the BLAS was found to
use: one input after the other, in blocks whose sums are added up. Whether that holds for a shape is asked of
the BLAS itself (`blocks_of`); where it does not, kernels/rows.py leaves any number of rows to the BLAS. Knows
nothing of layers, nor who computes which columns.

Letters: R rows  K inner dimension  N outputs  H heads
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.compiled import IS_COMPILED, address_of, call_at, floats, indices, inlined
from kernels.crew import claim, helper, place, run_job
from kernels.panel import ADD, PANEL, Panels

FEW = 64  # rows that go without the BLAS on any machine
AHEAD, AHEAD_ROWS = 2048, 16  # bytes, and rows of a weight that does not lie in panels: fetched meanwhile
# Of a sum, as BLAS libraries cut them; the most likely first.
LONGEST_BLOCKS = (384, 256, 320, 192, 512, 336, 448, 128)
_ZERO = np.float32(0.0)

Lie = tuple[int, int, int, int]  # of a weight, for compiled code: address, itemsize, its blocks, their number


class Blocks:
    """Lengths of a sum's blocks, for compiled code."""

    __slots__ = ("_lengths", "address", "count")

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = np.array(lengths, dtype=np.int64)
        self.address, self.count = self._lengths.ctypes.data, len(lengths)


def cut(num_inputs: int, longest: int) -> list[int]:
    """Blocks of a sum: the longest while two are left, then the rest, in halves if it is longer than one.

    Seen of MKL on Intel's processors.
    """
    blocks = [longest] * max(0, num_inputs // longest - 1)
    rest = num_inputs - sum(blocks)
    if rest > longest and rest < 2 * longest:
        blocks.append(-(-rest // 2))
    elif rest == 2 * longest:
        blocks.append(longest)
    return [*blocks, num_inputs - sum(blocks)]


def cut_off(num_inputs: int, longest: int) -> list[int]:
    """The longest as often as it goes, then the rest; halves of what is no longer than two. MKL on AMD's."""
    if num_inputs <= 2 * longest:
        return cut(num_inputs, longest)
    whole, rest = divmod(num_inputs, longest)
    return [longest] * whole + [rest] * (rest > 0)


@cache
def blocks_of(num_inputs: int, num_outputs: int) -> Blocks | None:
    """How the BLAS cuts the sums of a weight of this shape; None if in no way known here.

    By trying: products of 4, 12 and 128 random rows, all bits of which must agree.
    """
    if not IS_COMPILED:
        return None
    generator = torch.Generator().manual_seed(num_inputs)
    x_RK = torch.randn(128, num_inputs, generator=generator)
    weight_KN = torch.randn(num_inputs, num_outputs, generator=generator)
    expected = [(count, x_RK[:count] @ weight_KN) for count in (4, 12, 128)]
    ways = [way(num_inputs, longest) for way in (cut, cut_off) for longest in LONGEST_BLOCKS]
    for way in dict.fromkeys(map(tuple, ways)):
        blocks = Blocks(way)
        if all(
            torch.equal(product(x_RK[start : start + 4], weight_KN, blocks), out_RN[start : start + 4])
            for count, out_RN in expected
            for start in (0, count - 4)
        ):
            return blocks
    return None


@cache
def most_few() -> int:
    """Up to how many rows go without the BLAS: FEW, or any number where these loops are quicker than it.

    By timing both, once: neither changes a bit. On AMD's processors MKL takes twice as long as the loops, on
    Intel's about as long.
    """
    inner, outputs, num_rows = 512, 512, 2 * FEW
    blocks = blocks_of(inner, outputs)
    if blocks is None:
        return FEW
    x_RK, weight = torch.ones(num_rows, inner), Panels.of(torch.ones(1, inner, outputs))
    loops_s = _quickest(lambda: product(x_RK, weight, blocks))
    blas_s = _quickest(lambda: x_RK @ weight.whole())
    return sys.maxsize if loops_s < 0.8 * blas_s else FEW


def _quickest(run: Callable[[], Tensor]) -> float:
    """Seconds of the quickest of five."""
    seconds = []
    for _ in range(5):
        start_s = perf_counter()
        run()
        seconds.append(perf_counter() - start_s)
    return min(seconds)


def product(x_RK: Tensor, weight_KN: Tensor | Panels, blocks: Blocks) -> Tensor:
    """x_RK @ weight_KN in fp32; a tensor is fp32 and row-major; rows of x_RK may lie apart."""
    num_rows, inner = x_RK.shape
    width = weight_KN.outputs if isinstance(weight_KN, Panels) else weight_KN.shape[1]
    out_RN = x_RK.new_empty(num_rows, width)
    helper().launch(
        PRODUCT,
        -(-width // PANEL),
        x_RK.data_ptr(),
        4 * x_RK.stride(0),
        0,
        num_rows,
        weight_KN.data_ptr(),
        weight_KN.itemsize,
        inner,
        width,
        blocks.address,
        blocks.count,
        out_RN.data_ptr(),
        4 * width,
        0,
        ADD,
    )
    return out_RN


def product_by_head(x_RHK: Tensor, weight_HKN: Tensor | Panels, blocks: Blocks, out_RHN: Tensor) -> None:
    """The same of each head with a weight of its own; rows and heads may lie apart, weights may not."""
    (num_rows, heads, inner), width = x_RHK.shape, out_RHN.shape[2]
    helper().launch(
        PRODUCT,
        heads * -(-width // PANEL),
        x_RHK.data_ptr(),
        4 * x_RHK.stride(0),
        4 * x_RHK.stride(1),
        num_rows,
        weight_HKN.data_ptr(),
        weight_HKN.itemsize,
        inner,
        width,
        blocks.address,
        blocks.count,
        out_RHN.data_ptr(),
        4 * out_RHN.stride(0),
        4 * out_RHN.stride(1),
        ADD,
    )


def lie_of_product(weight: Tensor | Panels, blocks: Blocks) -> Lie:
    """Addresses only: keep the weight as long as this. blocks: of blocks_of, which keeps them for ever."""
    return weight.data_ptr(), weight.itemsize, blocks.address, blocks.count


@inlined
def _multiply(
    x: int,
    dx: int,
    num_rows: int,
    w: int,
    dw: int,
    itemsize: int,
    width: int,
    blocks: NDArray[np.int64],
    out_at: int,
    dout: int,
    far: int,
    add: int,
) -> None:
    """out = x @ some columns of a weight; addresses and bytes between rows. far: what will be read next."""
    sums = np.empty(num_rows * width, np.float32)
    is_first = True
    for block in blocks:
        sums[:] = _ZERO
        call_at(add, (x, dx, num_rows, w, dw, itemsize, width, sums.ctypes.data, 4 * width, block, far))
        x, w, far = x + 4 * block, w + block * dw, far + block * dw
        for r in range(num_rows):
            out, own = floats(out_at + r * dout, width), sums[r * width : (r + 1) * width]
            if is_first:
                out[:] = own
            else:
                for i in range(width):
                    out[i] += own[i]
        is_first = False


@inlined
def multiply_panel(
    x: int,
    dx: int,
    num_rows: int,
    inner: int,
    w: int,
    itemsize: int,
    width: int,
    column: int,
    blocks: NDArray[np.int64],
    out: int,
    dout: int,
    add: int,
) -> None:
    """From `column` on; a weight of 16 bits lies in panels."""
    own = min(PANEL, width - column)
    if itemsize == 2:
        dw, at = itemsize * own, w + itemsize * inner * column
        far = at + AHEAD
    else:
        dw, at = itemsize * width, w + itemsize * column
        far = at + AHEAD_ROWS * dw
    _multiply(x, dx, num_rows, at, dw, itemsize, own, blocks, out, dout, far, add)


@address_of(17)
def PRODUCT(  # noqa: N802 - it becomes an address
    claimed_at: int,
    side: int,
    units: int,
    x_at: int,
    dx: int,
    head_dx: int,
    num_rows: int,
    weight_at: int,
    itemsize: int,
    inner: int,
    width: int,
    blocks_at: int,
    num_blocks: int,
    out_at: int,
    dout: int,
    head_dout: int,
    add: int,
) -> None:
    """A unit is PANEL columns of a head."""
    blocks, panels, number = indices(blocks_at, num_blocks), (width + PANEL - 1) // PANEL, 0
    while claim(claimed_at, units):
        unit = place(units, side, number)
        head, column = unit // panels, unit % panels * PANEL
        x, out = x_at + head * head_dx, out_at + head * head_dout + 4 * column
        w = weight_at + head * inner * width * itemsize
        multiply_panel(x, dx, num_rows, inner, w, itemsize, width, column, blocks, out, dout, add)
        number += 1


@inlined
def multiply_rows(
    board_at: int,
    x: int,
    dx: int,
    num_rows: int,
    w: int,
    itemsize: int,
    inner: int,
    width: int,
    blocks_at: int,
    num_blocks: int,
    out: int,
    add: int,
    job: int,
) -> None:
    """`product` for compiled code; job: PRODUCT."""
    units, dout = (width + PANEL - 1) // PANEL, 4 * width
    own = board_at if units > 1 else 0
    run_job(
        own,
        job,
        units,
        x,
        dx,
        0,
        num_rows,
        w,
        itemsize,
        inner,
        width,
        blocks_at,
        num_blocks,
        out,
        dout,
        0,
        add,
    )
