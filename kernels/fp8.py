"""Block-scaled FP8 weights: to numbers and back.

A weight [out, in] is stored as E4M3 with one fp32 scale per block of `block` values; the last block of either
dimension may be ragged, and then its scale covers what is there. Knows nothing of files or layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.blocks import scale_shape

E4M3_MAX = 448.0
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a block of zeros still divides


def dequantize_blocks(
    weight: Tensor, scale_inv: Tensor, block: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """float(weight) * scale of its block, in fp32, then cast to `dtype`.

    weight: float8_e4m3fn [out, in].  scale_inv: fp32 [ceil(out/rows), ceil(in/columns)].
    Works a strip of block rows at a time, so the fp32 copy never exceeds one strip.
    """
    _check(weight, scale_inv, block)
    rows, columns = weight.shape
    out = torch.empty(rows, columns, dtype=dtype, device=weight.device)
    for row, scales in zip(range(0, rows, block[0]), scale_inv, strict=True):
        strip = slice(row, row + block[0])
        values = weight[strip].to(torch.float32)
        out[strip] = values.mul_(scales.repeat_interleave(block[1])[:columns])
    return out


def dequantize_blocks_reference(
    weight: Tensor, scale_inv: Tensor, block: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The definition, block by block."""
    _check(weight, scale_inv, block)
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for i in range(scale_inv.shape[0]):
        for j in range(scale_inv.shape[1]):
            rows = slice(i * block[0], (i + 1) * block[0])
            columns = slice(j * block[1], (j + 1) * block[1])
            out[rows, columns] = (weight[rows, columns].float() * scale_inv[i, j]).to(dtype)
    return out


@dataclass(frozen=True, slots=True)
class Tile:
    """rows x columns values that share a scale."""

    rows: int
    columns: int


def power_of_two_scale(largest: Tensor) -> Tensor:
    """The smallest power of two by which `largest` fits into E4M3: fp32, 2^-126 for zero (ue8m0).

    448 is 1.75 * 2^8, so the exponent goes up where the mantissa exceeds 1.75: integers alone, exact.
    """
    bits = (largest.float().view(torch.int32) + 0x1FFFFF) & 0x7F800000
    return (bits - (8 << 23)).clamp(min=1 << 23).view(torch.float32)


def round_tiles(x: Tensor, tile: Tile) -> Tensor:
    """bf16 of x's shape: each tile of the last two dimensions through E4M3 with a power-of-two scale.

    What a product with FP8 operands sees; exact in bf16, since E4M3 has 3 bits of mantissa. The last tiles
    may be ragged. kernels/fp8_round.py has the CUDA form.
    """
    rows, columns = x.shape[-2:]
    padded = F.pad(x, (0, -columns % tile.columns, 0, -rows % tile.rows)).float()
    tiles = padded.view(
        *x.shape[:-2],
        padded.shape[-2] // tile.rows,
        tile.rows,
        padded.shape[-1] // tile.columns,
        tile.columns,
    )
    scale = power_of_two_scale(tiles.abs().amax((-3, -1), keepdim=True))
    rounded = (tiles / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.view(padded.shape)[..., :rows, :columns].to(torch.bfloat16)


def quantize_blocks(
    weight: Tensor, block: tuple[int, int], *, power_of_two: bool = False
) -> tuple[Tensor, Tensor]:
    """(float8_e4m3fn [out, in], fp32 scale_inv): each block's largest magnitude becomes 448.

    weight: any float dtype [out, in], finite. Raises ValueError for NaN and infinity. power_of_two: scales
    are rounded up to powers of two, so that a de-quantised value is exact in bf16.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}: expected a float matrix [out, in]")
    if min(block) < 1:
        raise ValueError(f"block is {block}: expected two positive integers")
    rows, columns = weight.shape
    quantized = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=weight.device)
    scale_inv = torch.empty(scale_shape((rows, columns), block), dtype=torch.float32, device=weight.device)
    for i in range(scale_inv.shape[0]):  # strip by strip, as dequantize_blocks
        strip = slice(i * block[0], (i + 1) * block[0])
        values = F.pad(weight[strip].float(), (0, -columns % block[1]))
        blocks = values.view(len(values), -1, block[1])
        largest = blocks.abs().amax((0, 2))
        scale = (largest / E4M3_MAX).clamp(min=SMALLEST_SCALE)
        if power_of_two:
            scale = torch.where(largest.isfinite(), power_of_two_scale(largest), scale)
        scale_inv[i] = scale
        blocks = (blocks / scale[:, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
        quantized[strip] = blocks.view(values.shape)[:, :columns]
    if not bool(torch.isfinite(scale_inv).all()):
        raise ValueError("weight holds NaN or infinity: only finite weights can be quantised")
    return quantized, scale_inv


def _check(weight: Tensor, scale_inv: Tensor, block: tuple[int, int]) -> None:
    if weight.dim() != 2 or weight.dtype != torch.float8_e4m3fn:
        raise ValueError(f"weight is {weight.dtype} {list(weight.shape)}: expected float8_e4m3fn [out, in]")
    if min(block) < 1:
        raise ValueError(f"block is {block}: expected two positive integers")
    expected = scale_shape(tuple(weight.shape), block)
    if scale_inv.dtype != torch.float32 or tuple(scale_inv.shape) != expected:
        raise ValueError(
            f"scale_inv is {scale_inv.dtype} {list(scale_inv.shape)}: a weight {list(weight.shape)} in "
            f"blocks {list(block)} needs float32 {list(expected)}"
        )
    if scale_inv.device != weight.device:
        raise ValueError(
            f"scale_inv is on {scale_inv.device}, weight on {weight.device}: expected one device"
        )
