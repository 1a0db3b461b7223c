"""Matrix products whose rows do not know each other.

The bits of a row must not depend on how many rows share the call (promise 1 of the design: greedy text does
not depend on batch mates, chunking or placement). BLAS libraries choose other code paths for few rows and
other K-blocking for many, so every product here runs on `[K, N]` row-major weights (the orientation whose
paths agree), with a multiple of ROW_MULTIPLE rows, at most ROW_TILE at a time. Measured in
docs/decisions/002-row-invariance.md and asserted by tests/unit/test_rows.py on the machine at hand. Weights
of 8-bit integers have exact sums and need none of this (kernels/int8.py). Knows nothing of layers.

Letters: R rows  K inner dimension  N outputs  G groups (experts)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.int8 import Int8Weight, grouped_int8_matmul, int8_matmul

ROW_MULTIPLE = 4
ROW_TILE = 128

Weight = Tensor | Int8Weight


def dtype_of_rows(dtype: torch.dtype) -> torch.dtype:
    """Of what is multiplied with weights of `dtype`, and of all that is no product's weight."""
    return torch.float32 if dtype == torch.int8 else dtype


def padded_rows(num_rows: int) -> int:
    """The least multiple of ROW_MULTIPLE that holds num_rows, and never 0."""
    return max(ROW_MULTIPLE, -(-num_rows // ROW_MULTIPLE) * ROW_MULTIPLE)


def matmul_rows(x_RK: Tensor, weight_KN: Weight) -> Tensor:
    """x_RK @ weight_KN, each row's bits independent of R. R must be a multiple of ROW_MULTIPLE."""
    num_rows = x_RK.shape[0]
    assert num_rows % ROW_MULTIPLE == 0, f"{num_rows} rows: pad to a multiple of {ROW_MULTIPLE} first"
    if isinstance(weight_KN, Int8Weight):
        return int8_matmul(x_RK, weight_KN)
    if num_rows <= ROW_TILE:
        return x_RK @ weight_KN
    out_RN = x_RK.new_empty(num_rows, weight_KN.shape[1])
    for start in range(0, num_rows, ROW_TILE):
        torch.mm(x_RK[start : start + ROW_TILE], weight_KN, out=out_RN[start : start + ROW_TILE])
    return out_RN


def grouped_matmul_rows(x_RK: Tensor, weights_G: Sequence[Weight], rows_per_group: Sequence[int]) -> Tensor:
    """Consecutive rows times their group's weight; each row's bits as in matmul_rows alone.

    weights_G: [K, N] each. rows_per_group: length G, multiples of ROW_MULTIPLE above 0, summing to R. A loop,
    not one batched call: only the groups that have rows are touched, and nothing is copied.
    """
    rows = list(rows_per_group)
    if int8_G := [weight for weight in weights_G if isinstance(weight, Int8Weight)]:
        return grouped_int8_matmul(x_RK, int8_G, rows)
    floats_G = [weight for weight in weights_G if isinstance(weight, Tensor)]
    out_RN = x_RK.new_empty(x_RK.shape[0], floats_G[0].shape[1])
    parts = zip(torch.split(x_RK, rows), floats_G, torch.split(out_RN, rows), strict=True)
    for x_part, weight_KN, out_part in parts:
        if x_part.shape[0] <= ROW_TILE:
            torch.mm(x_part, weight_KN, out=out_part)
        else:
            out_part.copy_(matmul_rows(x_part, weight_KN))
    return out_RN
