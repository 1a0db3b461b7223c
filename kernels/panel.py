"""A panel of a product: some columns of a weight, times all rows.

Compiled once and called by its address, by every loop that multiplies. Rows go eight, four or one at a time
through tiles (kernels/tile.py); the panel stays in a core's cache meanwhile. A weight in 16 bits lies in
memory panel after panel, as it is read. Knows nothing of blocks, and not what is multiplied.

Letters: H heads  K inner dimension  N outputs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kernels.compiled import address_of, floats, fma, halves, inlined, widened
from kernels.tile import VECTOR, tile

PANEL = 64  # columns, as many as a tile of one row or of four has
_WIDE, _HALF_WIDE = 4, 2  # vectors of a tile; eight rows leave room for two


@dataclass(frozen=True, slots=True)
class Panels:
    """bfloat16 weights of heads, [K, N] each: PANEL columns, row by row, then the next; the last has fewer.

    values_HX: [H, K * N]
    """

    values_HX: Tensor
    inner: int
    outputs: int
    itemsize: ClassVar[int] = 2

    @staticmethod
    def of(weight_HKN: Tensor) -> Panels:
        """weight_HKN: every value a bfloat16."""
        panels = [panel.flatten(1) for panel in torch.split(weight_HKN.bfloat16(), PANEL, 2)]
        return Panels(torch.cat(panels, 1), *weight_HKN.shape[1:])

    def data_ptr(self) -> int:
        return self.values_HX.data_ptr()

    def whole(self, head: int = 0) -> Tensor:
        """fp32 [K, N]"""
        whole_KN = self.values_HX.new_empty(self.inner, self.outputs, dtype=torch.float32)
        even = self.outputs // PANEL * PANEL
        first, last = torch.split(
            self.values_HX[head], [self.inner * even, self.inner * (self.outputs - even)]
        )
        whole_KN[:, :even].view(self.inner, -1, PANEL).copy_(
            first.view(-1, self.inner, PANEL).transpose(0, 1)
        )
        whole_KN[:, even:] = last.view(self.inner, -1)
        return whole_KN


_one, _four = tile(1, 1, 4), tile(4, 1, 4)
_one_wide, _four_wide, _eight = tile(1, _WIDE, 4), tile(4, _WIDE, 4), tile(8, _HALF_WIDE, 4)
_one_half, _four_half = tile(1, 1, 2), tile(4, 1, 2)
_one_wide_half, _four_wide_half, _eight_half = tile(1, _WIDE, 2), tile(4, _WIDE, 2), tile(8, _HALF_WIDE, 2)


@inlined
def _add_vector(
    x: int, dx: int, num_rows: int, w: int, dw: int, half: bool, s: int, ds: int, count: int, far: int
) -> None:
    """One vector of columns."""
    r = 0
    while r < num_rows:
        four = r + 4 <= num_rows
        if half and four:
            _four_half(x, dx, w, dw, s, ds, count, far)
        elif half:
            _one_half(x, dx, w, dw, s, ds, count, far)
        elif four:
            _four(x, dx, w, dw, s, ds, count, far)
        else:
            _one(x, dx, w, dw, s, ds, count, far)
        done = 4 if four else 1
        x, s, r, far = x + done * dx, s + done * ds, r + done, w


@inlined
def _add_panel(
    x: int, dx: int, num_rows: int, w: int, dw: int, half: bool, s: int, ds: int, count: int, far: int
) -> None:
    r, across = 0, (2 if half else 4) * _HALF_WIDE * VECTOR
    while r < num_rows:
        left = num_rows - r
        if half and left >= 8:
            _eight_half(x, dx, w, dw, s, ds, count, far)
            _eight_half(x, dx, w + across, dw, s + 4 * _HALF_WIDE * VECTOR, ds, count, far + across)
        elif half and left >= 4:
            _four_wide_half(x, dx, w, dw, s, ds, count, far)
        elif half:
            _one_wide_half(x, dx, w, dw, s, ds, count, far)
        elif left >= 8:
            _eight(x, dx, w, dw, s, ds, count, far)
            _eight(x, dx, w + across, dw, s + 4 * _HALF_WIDE * VECTOR, ds, count, far + across)
        elif left >= 4:
            _four_wide(x, dx, w, dw, s, ds, count, far)
        else:
            _one_wide(x, dx, w, dw, s, ds, count, far)
        done = 8 if left >= 8 else 4 if left >= 4 else 1
        x, s, r, far = x + done * dx, s + done * ds, r + done, w


@address_of(11)
def ADD(  # noqa: N802 - it becomes an address
    x: int,
    dx: int,
    num_rows: int,
    w: int,
    dw: int,
    itemsize: int,
    width: int,
    s: int,
    ds: int,
    count: int,
    far: int,
) -> None:
    """s += x @ `count` rows of a weight; addresses, and bytes between rows; itemsize 4, or 2 for bfloat16.

    far: what to fetch meanwhile into the cache, lying as the weight does.
    """
    n, half = 0, itemsize == 2
    while n + PANEL <= width:
        at, to, next_at = w + itemsize * n, s + 4 * n, far + itemsize * n
        _add_panel(x, dx, num_rows, at, dw, half, to, ds, count, next_at)
        n += PANEL
    while n + VECTOR <= width:
        at, to, next_at = w + itemsize * n, s + 4 * n, far + itemsize * n
        _add_vector(x, dx, num_rows, at, dw, half, to, ds, count, next_at)
        n += VECTOR
    while n < width:
        for r in range(num_rows):
            row, own = floats(x + r * dx, count), floats(s + r * ds, width)
            for k in range(count):
                at = w + k * dw + itemsize * n
                value = widened(halves(at, 1)[0]) if half else floats(at, 1)[0]
                own[n] = fma(row[k], value, own[n])
        n += 1
