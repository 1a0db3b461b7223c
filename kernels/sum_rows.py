"""The weighted sum of what a token's experts returned, and whether all of it is finite.

One loop over tokens on a CPU: in the order of the pairs, each token for itself. Knows nothing of experts.

Letters: T tokens  K experts per token  P = T * K pairs  D hidden
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kernels.compiled import IS_COMPILED, LANES, compiled, floats, fma


def weighted_sums(rows_PD: Tensor, weights_TK: Tensor) -> Tensor:
    """[T, D] in the rows' dtype, summed in fp32 in the order of K."""
    num_tokens, num_each = weights_TK.shape
    if not (_is_plain(rows_PD) and _is_plain(weights_TK)):
        rows_TKD = rows_PD.view(num_tokens, num_each, -1)
        return torch.bmm(weights_TK[:, None], rows_TKD.float())[:, 0].to(rows_PD.dtype)
    width = rows_PD.shape[1]
    out_TD = torch.empty(num_tokens, width)
    _weighted_sums(rows_PD.data_ptr(), weights_TK.data_ptr(), num_tokens, num_each, width, out_TD.data_ptr())
    return out_TD


def is_finite(rows_PD: Tensor) -> bool:
    """Whether the sum of all is: false says that some value may not be."""
    if not _is_plain(rows_PD):
        return math.isfinite(float(rows_PD.sum()))
    total = np.empty(1, np.float32)
    _total(rows_PD.data_ptr(), rows_PD.numel(), total.ctypes.data)
    return math.isfinite(total[0])


def _is_plain(x: Tensor) -> bool:
    return IS_COMPILED and x.is_cpu and x.dtype == torch.float32 and x.is_contiguous()


@compiled("void(int64" + 5 * ", int64" + ")")
def _weighted_sums(
    rows_at: int, weights_at: int, num_tokens: int, num_each: int, width: int, out_at: int
) -> None:
    for t in range(num_tokens):
        out = floats(out_at + 4 * t * width, width)
        weights = floats(weights_at + 4 * t * num_each, num_each)
        out[:] = np.float32(0.0)
        for k in range(num_each):
            row, weight = floats(rows_at + 4 * (t * num_each + k) * width, width), weights[k]
            for i in range(width):
                out[i] = fma(weight, row[i], out[i])


@compiled("void(int64, int64, int64)")
def _total(at: int, count: int, total_at: int) -> None:
    values, sums, total = floats(at, count), np.zeros(LANES, np.float32), np.float32(0.0)
    whole = count // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            sums[lane] += values[start + lane]
    for i in range(whole, count):
        sums[0] += values[i]
    for lane in range(LANES):
        total += sums[lane]
    floats(total_at, 1)[0] = total
