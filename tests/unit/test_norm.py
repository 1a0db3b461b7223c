"""Normalised rows: the definition, and the same bits in any company."""

from __future__ import annotations

import pytest
import torch

from kernels.norm import rms_norm, rms_norm_reference

EPS = 1e-6
WIDTHS = (16, 48, 80, 208, 512, 1536)


def rows(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(300, width + 37, generator=generator), torch.rand(width, generator=generator) + 0.5


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_it_is_the_rms_norm(width: int, scale: float) -> None:
    wide, weight_D = rows(width)
    x_RD = wide[:, :width] * scale
    # A few roundings of 2^-24 each.
    torch.testing.assert_close(
        rms_norm(x_RD, weight_D, EPS), rms_norm_reference(x_RD, weight_D, EPS), rtol=2e-6, atol=1e-7
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_rows_bits_do_not_depend_on_how_many_share_the_call_or_where_it_lies(
    width: int, dtype: torch.dtype
) -> None:
    """Slices of wider tensors come here too: the latents are columns of a fused product."""
    wide, weight_D = rows(width)
    x_RD = wide.to(dtype)[:, 5 : 5 + width]
    whole_RD = rms_norm(x_RD.contiguous(), weight_D, EPS)
    for num_rows in (1, 2, 3, 4, 5, 8, 12, 31, 64, 128, 257, 300):
        for start in {0, (300 - num_rows) // 2, 300 - num_rows}:
            part_RD = rms_norm(x_RD[start : start + num_rows], weight_D, EPS)
            assert torch.equal(part_RD, whole_RD[start : start + num_rows]), (num_rows, start)


def test_a_row_of_zeros_stays_zero() -> None:
    assert not rms_norm(torch.zeros(4, 64), torch.ones(64), EPS).any()
