"""Products of 8-bit integers: close to the product, and each row for itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.int8 import LARGEST, Int8Weight, int8_matmul, quantize_weight
from kernels.rows import ROW_MULTIPLE, grouped_matmul_rows

SHAPES = ((64, 33), (80, 64), (512, 416), (1536, 512))


def operands(rows: int, inner: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(inner * outputs)
    x_RK = torch.randn(rows, inner, generator=generator)
    return x_RK, torch.randn(outputs, inner, generator=generator) / inner**0.5


@pytest.mark.parametrize(("inner", "outputs"), SHAPES)
def test_it_is_the_product_of_what_was_rounded(inner: int, outputs: int) -> None:
    x_RK, weight_NK = operands(8, inner, outputs)
    scales = [part.double().abs().amax(-1, keepdim=True) / LARGEST for part in (x_RK, weight_NK)]
    x, weight = (
        (part.double() / scale).round() * scale for part, scale in zip((x_RK, weight_NK), scales, strict=True)
    )
    # fp32 scales: a few roundings of 2^-24; a quotient at a half may round the other way, by one step.
    half = float(scales[0].max() * scales[1].max()) * LARGEST
    torch.testing.assert_close(
        int8_matmul(x_RK, quantize_weight(weight_NK)).double(), x @ weight.t(), rtol=1e-5, atol=half
    )


def test_it_is_close_to_the_product() -> None:
    x_RK, weight_NK = operands(64, 512, 416)
    exact = x_RK @ weight_NK.t()
    error = int8_matmul(x_RK, quantize_weight(weight_NK)) - exact
    # Rounding errors of step / sqrt(12) in both factors; normal rows of 512 reach 3.2 sigma: about 1 %.
    assert error.norm() / exact.norm() < 0.015


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(1, 140), st.integers(0, 159))
def test_a_rows_bits_do_not_depend_on_how_many_share_the_call_or_where_it_lies(
    shape: tuple[int, int], num_rows: int, start: int
) -> None:
    x_RK, weight_NK = operands(300, *shape)
    weight = quantize_weight(weight_NK)
    part = int8_matmul(x_RK[start : start + num_rows], weight)
    assert torch.equal(part, int8_matmul(x_RK, weight)[start : start + num_rows])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40).map(lambda n: n * ROW_MULTIPLE), min_size=1, max_size=7))
def test_groups_have_the_bits_of_one_by_one(rows_per_group: list[int]) -> None:
    x_RK, weight_NK = operands(sum(rows_per_group), 80, 64)
    weights: list[Int8Weight] = [quantize_weight(weight_NK * (1 + i)) for i in range(len(rows_per_group))]
    grouped = grouped_matmul_rows(x_RK, weights, rows_per_group)
    parts = zip(x_RK.split(rows_per_group), weights, strict=True)
    assert torch.equal(grouped, torch.cat([int8_matmul(part, weight) for part, weight in parts]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(bad: float) -> None:
    x_RK, weight_NK = operands(8, 64, 33)
    weight = quantize_weight(weight_NK)
    expected = int8_matmul(x_RK, weight)
    x_RK[3, 5] = bad
    spoiled = int8_matmul(x_RK, weight)
    assert not spoiled[3].isfinite().any()
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(spoiled[others], expected[others])


def test_zeros_give_zeros() -> None:
    x_RK, weight_NK = operands(4, 64, 33)
    x_RK[1], weight_NK[7] = 0.0, 0.0
    product = int8_matmul(x_RK, quantize_weight(weight_NK))
    assert product.isfinite().all()
    assert not product[1].any()
    assert not product[:, 7].any()
