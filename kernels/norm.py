"""Root-mean-square and layer normalisation, fp32 inside.

One cast at the end, as DeepSeek's own code does (transformers casts before the weight: one bf16 ulp apart).
Knows nothing of residuals.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dim, in fp32, returned in x's dtype.

    weight_D: fp32. By the length of a row, one reduction: torch's rms_norm is twice as slow on a CPU.
    """
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
