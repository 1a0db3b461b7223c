"""Rows and weights in FP8, as products on a GPU take them.

A row has one power-of-two scale per GROUP values, a weight one fp32 scale per GROUP x GROUP block, as
checkpoints of DeepSeek-V3 store it. Knows nothing of kernels.

Letters: R rows  K inner dimension  N outputs  G groups of a row (K / GROUP)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.fp8 import Tile, dequantize_blocks, power_of_two_scale

GROUP = 128
ROW_TILE = Tile(1, GROUP)


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """values_RK e4m3 times scale_GR[k // GROUP, r].

    The scales lie with the rows innermost, so that a tile of rows reads them in one go; scale_GR may be a
    view whose rows are further apart.
    """

    values_RK: Tensor
    scale_GR: Tensor

    def check(self, name: str) -> None:
        """ValueError unless shapes, dtypes and strides are those of the docstring."""
        values, scale = self.values_RK, self.scale_GR
        if values.dtype != torch.float8_e4m3fn or values.dim() != 2 or not values.is_contiguous():
            raise ValueError(
                f"{name} is {values.dtype} {list(values.shape)}: expected float8_e4m3fn [R, K], dense"
            )
        expected = [values.shape[1] // GROUP, values.shape[0]]
        if values.shape[1] % GROUP or scale.dtype != torch.float32 or list(scale.shape) != expected:
            raise ValueError(
                f"{name}'s scales are {scale.dtype} {list(scale.shape)}: {list(values.shape)} in groups of "
                f"{GROUP} needs float32 {expected}"
            )

    def float(self) -> Tensor:
        """fp32 [R, K]"""
        rows, width = self.values_RK.shape
        values = self.values_RK.float().view(rows, width // GROUP, GROUP) * self.scale_GR.t()[..., None]
        return values.view(rows, width)


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """values_NK e4m3 times scale_NK[n // GROUP, k // GROUP]; N and K are multiples of GROUP."""

    values_NK: Tensor
    scale_NK: Tensor

    def check(self, name: str) -> None:
        """ValueError unless shapes and dtypes are those of the docstring."""
        values, scale = self.values_NK, self.scale_NK
        if values.dtype != torch.float8_e4m3fn or not values.is_contiguous():
            raise ValueError(f"{name} is {values.dtype} {list(values.shape)}: expected float8_e4m3fn, dense")
        expected = [*values.shape[:-2], values.shape[-2] // GROUP, values.shape[-1] // GROUP]
        if values.shape[-1] % GROUP or values.shape[-2] % GROUP:
            raise ValueError(f"{name} is {list(values.shape)}: pad both dimensions to multiples of {GROUP}")
        if scale.dtype != torch.float32 or list(scale.shape) != expected:
            raise ValueError(f"{name}'s scales are {scale.dtype} {list(scale.shape)}: expected {expected}")

    def float(self) -> Tensor:
        """fp32 of values_NK's shape."""
        return dequantize_blocks(self.values_NK, self.scale_NK, (GROUP, GROUP), torch.float32)


def quantize_rows(x_RK: Tensor) -> Fp8Rows:
    """Each group's largest magnitude fits with the smallest power of two: the reference of every kernel."""
    rows, width = x_RK.shape
    groups = x_RK.float().view(rows, width // GROUP, GROUP)
    scale_RG = power_of_two_scale(groups.abs().amax(-1))
    values = (groups / scale_RG[..., None]).to(torch.float8_e4m3fn).view(rows, width)
    return Fp8Rows(values, scale_RG.t().contiguous())


def empty_rows(num_rows: int, width: int, device: torch.device) -> Fp8Rows:
    """For a kernel to fill."""
    return Fp8Rows(
        torch.empty(num_rows, width, dtype=torch.float8_e4m3fn, device=device),
        torch.empty(width // GROUP, num_rows, dtype=torch.float32, device=device),
    )
