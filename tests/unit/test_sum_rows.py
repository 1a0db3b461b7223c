"""Weighted sums of experts' rows: by definition, in any company, and what is not finite shows."""

from __future__ import annotations

import pytest
import torch

from kernels.sum_rows import is_finite, weighted_sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 16, 41])
def test_a_tokens_sum_is_of_its_own_rows_whoever_else_is_summed(width: int, dtype: torch.dtype) -> None:
    rows_PD, weights_TK = torch.randn(7 * 8, width).to(dtype), torch.rand(7, 8)
    sums = weighted_sums(rows_PD, weights_TK)
    expected = (rows_PD.double().view(7, 8, width) * weights_TK.double()[..., None]).sum(1)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2  # eight products of size 1; one rounding to 16 bits
    torch.testing.assert_close(sums.double(), expected, rtol=tolerance, atol=tolerance)
    assert sums.dtype == dtype
    for token in range(7):
        alone = weighted_sums(rows_PD[8 * token : 8 * token + 8], weights_TK[token : token + 1])
        assert torch.equal(alone, sums[token : token + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 17, 3 * 33 - 1])
def test_whatever_is_not_finite_shows(place: int, bad: float, dtype: torch.dtype) -> None:
    rows_PD = torch.randn(3, 33).to(dtype)
    assert is_finite(rows_PD)
    rows_PD.view(-1)[place] = bad
    assert not is_finite(rows_PD)
