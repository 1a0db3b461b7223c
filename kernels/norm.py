"""Root-mean-square and layer normalisation, fp32 inside.

On a CPU fp32 rows are one loop, each for itself, where torch takes five operations. One cast at the end, as
DeepSeek's own code does (transformers casts before the weight: one bf16 ulp apart).
Knows nothing of residuals.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kernels.compiled import IS_COMPILED, LANES, Floats, compiled, floats, fma, inlined

_ONE = np.float32(1.0)


def rms_norm(x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dim, in fp32, returned in x's dtype.

    weight_D: fp32. By the length of a row, one reduction: torch's rms_norm is twice as slow on a CPU.
    """
    if IS_COMPILED and _is_plain(x_RD):
        out_RD = x_RD.new_empty(x_RD.shape)
        num_rows, width = x_RD.shape
        _rms_norm(
            x_RD.data_ptr(), x_RD.stride(0), num_rows, width, weight_D.data_ptr(), eps, out_RD.data_ptr()
        )
        return out_RD
    x32_RD = x_RD.float()
    length_R1 = torch.linalg.vector_norm(x32_RD, dim=-1, keepdim=True)
    eps_1 = length_R1.new_full((), eps)
    inverse_R1 = torch.addcmul(eps_1, length_R1, length_R1, value=1 / x_RD.shape[-1]).rsqrt_()
    return (x32_RD * inverse_R1).mul_(weight_D).to(x_RD.dtype)


def rms_norm_reference(x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The definition, by torch."""
    return functional.rms_norm(x_RD.float(), weight_D.shape, weight_D, eps).to(x_RD.dtype)


def layer_norm(x_RD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> Tensor:
    """weight * (x - mean) / sqrt(var + eps) + bias over the last dim, in fp32, returned in x's dtype."""
    return functional.layer_norm(x_RD.float(), weight_D.shape, weight_D, bias_D, eps).to(x_RD.dtype)


def _is_plain(x_RD: Tensor) -> bool:
    return x_RD.is_cpu and x_RD.dtype == torch.float32 and x_RD.dim() == 2 and x_RD.stride(1) == 1


@inlined
def sum_of_squares(x: Floats, sums: Floats) -> np.float32:
    """By LANES partial sums, then one after the other; sums: room for them."""
    sums[:] = np.float32(0.0)
    whole = len(x) // LANES * LANES
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            sums[lane] = fma(x[start + lane], x[start + lane], sums[lane])
    for i in range(whole, len(x)):
        sums[0] = fma(x[i], x[i], sums[0])
    total = np.float32(0.0)
    for lane in range(LANES):
        total += sums[lane]
    return total


@inlined
def normalise(x: Floats, weight: Floats, eps: np.float32, out: Floats, sums: Floats) -> None:
    """rms_norm of a row; sums: room for LANES partial ones."""
    inverse = _ONE / np.sqrt(sum_of_squares(x, sums) / np.float32(len(x)) + eps)
    for i in range(len(x)):
        out[i] = x[i] * inverse * weight[i]


@inlined
def centre(x: Floats, weight: Floats, bias: Floats, eps: np.float32, out: Floats, sums: Floats) -> None:
    """layer_norm of a row."""
    mean = np.float32(0.0)
    for i in range(len(x)):
        mean += x[i]
    mean /= np.float32(len(x))
    for i in range(len(x)):
        out[i] = x[i] - mean
    inverse = _ONE / np.sqrt(sum_of_squares(out, sums) / np.float32(len(x)) + eps)
    for i in range(len(x)):
        out[i] = fma(out[i] * inverse, weight[i], bias[i])


@compiled("void(int64, int64, int64, int64, int64, float64, int64)")
def _rms_norm(
    x_at: int, stride: int, num_rows: int, width: int, weight_at: int, eps: float, out_at: int
) -> None:
    weight, sums = floats(weight_at, width), np.empty(LANES, np.float32)
    for r in range(num_rows):
        x, out = floats(x_at + 4 * r * stride, width), floats(out_at + 4 * r * width, width)
        normalise(x, weight, np.float32(eps), out, sums)
