"""Products of 8-bit integers: a quarter of fp32's bytes, and sums that are exact.

A weight has one scale per output, a row of activations one of its own, taken when it comes; the integers
between are summed without rounding, so a row's bits depend on nothing but the row. Knows nothing of which
weights are worth it.

Letters: R rows  K inner dimension  N outputs  G groups (experts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """values_RK * scale_R1: int8 and fp32."""

    values_RK: Tensor
    scale_R1: Tensor


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """values_NK * scale_N[:, None], `[outputs, inputs]` (the orientation that is quicker here)."""

    values_NK: Tensor
    scale_N: Tensor

    def product(self, values_RK: Tensor) -> Tensor:
        """fp32 [R, N] of int8 rows; their scales are yet to come."""
        return torch._int_mm(values_RK, self.values_NK.t()) * self.scale_N


def quantize_rows(x_RK: Tensor) -> Int8Rows:
    """Each row's largest magnitude becomes 127.

    A row of zeros has scale 0 and a row with NaN or infinity scale NaN or infinity: whatever their integers
    are, the product is 0, or not finite.
    """
    scale_R1 = x_RK.abs().amax(-1, keepdim=True) / LARGEST
    return Int8Rows((x_RK / scale_R1).round_().to(torch.int8), scale_R1)


def quantize_weight(weight_NK: Tensor) -> Int8Weight:
    """weight_NK: fp32, as checkpoints store it."""
    rows = quantize_rows(weight_NK)
    return Int8Weight(rows.values_RK, rows.scale_R1[:, 0])


def int8_matmul(x_RK: Tensor, weight: Int8Weight) -> Tensor:
    """fp32 [R, N]: x_RK times the weight."""
    rows = quantize_rows(x_RK)
    return weight.product(rows.values_RK).mul_(rows.scale_R1)


def grouped_int8_matmul(x_RK: Tensor, weights_G: Sequence[Int8Weight], rows_per_group: list[int]) -> Tensor:
    """fp32 [R, N]: consecutive rows times their group's weight."""
    rows = quantize_rows(x_RK)
    parts = zip(torch.split(rows.values_RK, rows_per_group), weights_G, strict=True)
    return torch.cat([weight.product(values) for values, weight in parts]).mul_(rows.scale_R1)
