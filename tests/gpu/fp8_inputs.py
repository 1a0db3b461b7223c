"""Random FP8 rows and weights as checkpoints have them."""

from __future__ import annotations

import torch

from kernels.fp8_rows import GROUP, Fp8Rows, Fp8Weight, quantize_rows


def random_rows(rows: int, width: int, device: torch.device) -> Fp8Rows:
    spread = torch.randn(rows, 1, device=device).mul(2).exp()  # rows of unlike size: wrong scales show
    return quantize_rows(torch.randn(rows, width, device=device) * spread)


def random_weight(shape: tuple[int, ...], device: torch.device) -> Fp8Weight:
    values = torch.randn(shape, device=device).mul(30).clamp(-448, 448).to(torch.float8_e4m3fn)
    scale = torch.rand(*shape[:-2], shape[-2] // GROUP, shape[-1] // GROUP, device=device)
    return Fp8Weight(values, (scale + 0.1) / (30 * shape[-1] ** 0.5))


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over norm of the reference; NaN where out has one."""
    difference = out.double() - reference.double()
    return float(difference.norm() / reference.double().norm().clamp(min=1e-30))
