"""Rotary position embedding in half-split order.

Pairs are (x[i], x[i + d/2]). MLA checkpoints interleave their pairs instead, (x[2i], x[2i+1]): the loader
permutes those weight rows once (`interleaved_to_half`), so that one function serves MLA and the indexer.
Knows nothing of YaRN; see model/rope.py for the angles.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x_THR: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    """Rotate the pairs (i, i + R/2) of every head.

    x_THR: tokens, heads, rotary dims. cos_T1R, sin_T1R: fp32, both halves filled; the first half of sin is
    negated (see `angle_tables`), so that the rotation is x * cos + swap_halves(x) * sin. Computed in fp32,
    each operation rounded: addcmul rounds once or twice, by where in a vector an element lies.
    """
    x32_THR = x_THR.float()
    swapped_THR = x32_THR.roll(x_THR.shape[-1] // 2, -1)
    return (x32_THR * cos_T1R).add_(swapped_THR.mul_(sin_T1R)).to(x_THR.dtype)


def rotate_reference(x_THR: Tensor, angle_TP: Tensor) -> Tensor:
    """The same written as complex numbers; angle_TP: fp32 radians, P = R/2 pairs."""
    first, second = x_THR.float().chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle_TP), angle_TP)[:, None, :]
    return torch.cat([turned.real, turned.imag], -1).to(x_THR.dtype)


def angle_tables(angle_TP: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """(cos_TR, sin_TR) in the form that `rotate` wants, R = 2P, times `scale`."""
    cos_TP, sin_TP = angle_TP.cos() * scale, angle_TP.sin() * scale
    return torch.cat([cos_TP, cos_TP], -1), torch.cat([-sin_TP, sin_TP], -1)


def interleaved_to_half(num_dims: int) -> Tensor:
    """The order that turns interleaved pairs into half-split ones: 0, 2, 4, ..., 1, 3, 5, ... (int64)."""
    return torch.cat([torch.arange(0, num_dims, 2), torch.arange(1, num_dims, 2)])
