"""Values through E4M3 and back, a scale per tile, as one Triton kernel.

The CUDA form of kernels.fp8.round_tiles, bit for bit; import it only where there is a CUDA device. Knows
nothing of which tiles a product wants.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8 import Tile

ROWS_PER_PROGRAM = 32  # of 1 x 128 tiles, or columns of 128 x 1 ones: 4096 values, 32 a thread
NUM_WARPS = {(False, True): 4, (True, False): 4, (True, True): 8}


def round_tiles_cuda(x: Tensor, tile: Tile) -> Tensor:
    """bf16 of x's shape. x: contiguous or not, [..., M, K]; tiles lie over the last two dimensions."""
    values = x.contiguous()
    rows, columns = values.shape[-2:]
    out = torch.empty_like(values, dtype=torch.bfloat16)
    over_rows, over_columns = tile.rows > 1, tile.columns > 1
    block_rows = _block(rows, tile.rows) if over_rows else ROWS_PER_PROGRAM
    block_columns = _block(columns, tile.columns) if over_columns else ROWS_PER_PROGRAM
    grid = (
        triton.cdiv(rows, block_rows),
        triton.cdiv(columns, block_columns),
        values.numel() // (rows * columns),
    )
    _round_kernel[grid](
        values,
        out,
        rows,
        columns,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        OVER_ROWS=over_rows,
        OVER_COLUMNS=over_columns,
        num_warps=NUM_WARPS[(over_rows, over_columns)],
    )
    return out


def _block(size: int, tile: int) -> int:
    """A power of two that holds a tile, or all there is of it."""
    return tile if size >= tile else int(triton.next_power_of_2(size))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _round_kernel(  # type: ignore[no-untyped-def]  # Triton reads annotations itself and knows no Any
    x_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    columns,  # noqa: ANN001
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    OVER_ROWS: tl.constexpr,
    OVER_COLUMNS: tl.constexpr,
) -> None:
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    at = (tl.program_id(2).to(tl.int64) * rows + row) * columns + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    largest = tl.abs(x)
    if OVER_COLUMNS:
        largest = tl.max(largest, axis=1, keep_dims=True)
    if OVER_ROWS:
        largest = tl.max(largest, axis=0, keep_dims=True)
    # As kernels.fp8.power_of_two_scale: exponents alone, so nothing is rounded but the value itself.
    bits = (largest.to(tl.int32, bitcast=True) + 0x1FFFFF) & 0x7F800000
    scale_bits = tl.maximum(bits - (8 << 23), 1 << 23)
    scale = scale_bits.to(tl.float32, bitcast=True)
    inverse = ((254 << 23) - scale_bits).to(tl.float32, bitcast=True)
    rounded = (x * inverse).to(tl.float8e4nv).to(tl.float32) * scale
    tl.store(out_ptr + at, rounded.to(tl.bfloat16), mask=inside)
