"""A row's product has the same bits whoever shares the call: promise 1, on the machine at hand."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.rows import (
    ROW_MULTIPLE,
    ROW_TILE,
    grouped_matmul_rows,
    matmul_heads,
    matmul_rows,
    narrowed,
    padded_rows,
    row_multiple,
)

INNER = (64, 80, 512, 1024, 1536, 2048, 4096)
OUTPUTS = (33, 64, 512, 1536)
# The fewest, some odd ones, and the edges of a tile.
NUM_ROWS = (1, 2, 3, 4, 5, 8, 12, 31, 64, 100, 128, 129, 257)
FEW_ROWS = (1, 4, 37)
DTYPES = (torch.float32, torch.bfloat16)
CHEAP = 1 << 18  # multiplications of one row; above, FEW_ROWS are tried


def operands(rows: int, inner: int, outputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(inner * outputs)
    x_RK = torch.randn(rows, inner, generator=generator)
    weight_KN = torch.randn(inner, outputs, generator=generator) / inner**0.5
    return x_RK.to(dtype), weight_KN.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("inner", INNER)
def test_a_rows_bits_do_not_depend_on_how_many_share_the_call_or_where_it_lies(inner, outputs, dtype):
    x_RK, weight_KN = operands(300, inner, outputs, dtype)
    whole_RN = matmul_rows(x_RK, weight_KN)
    few = inner * outputs > CHEAP
    for num_rows in FEW_ROWS if few else NUM_ROWS:
        for start in {0, 300 - num_rows}:
            part_RN = matmul_rows(x_RK[start : start + num_rows], weight_KN)
            assert torch.equal(part_RN, whole_RN[start : start + num_rows]), (num_rows, start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_product(dtype):
    x_RK, weight_KN = operands(300, 512, 64, dtype)
    expected = (x_RK.double() @ weight_KN.double()).to(dtype)
    # One rounding to the dtype, and fp32 sums of 512 terms of size about 1/20.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(matmul_rows(x_RK, weight_KN), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inner", [64, 80, 2048])
def test_bits_do_not_depend_on_where_the_rows_lie_in_memory(inner, dtype):
    """Slices of wider tensors and payloads at odd addresses come here too."""
    x_RK, weight_KN = operands(100, inner, 64, dtype)
    expected = matmul_rows(x_RK, weight_KN)
    wide = x_RK.new_zeros(100, inner + 37)
    wide[:, 5 : 5 + inner] = x_RK
    shifted = x_RK.new_zeros(100 * inner + 3)
    shifted[3:] = x_RK.flatten()
    assert torch.equal(matmul_rows(wide[:, 5 : 5 + inner], weight_KN), expected)
    assert torch.equal(matmul_rows(shifted[3:].view(100, inner), weight_KN), expected)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40).map(lambda n: n * ROW_MULTIPLE), min_size=1, max_size=7),
    st.sampled_from([(64, 33), (80, 64), (512, 64)]),
    st.sampled_from(DTYPES),
)
def test_groups_have_the_bits_of_one_by_one(rows_per_group, shape, dtype):
    x_RK, _ = operands(sum(rows_per_group), *shape, dtype)
    generator = torch.Generator().manual_seed(len(rows_per_group))
    weights = [torch.randn(*shape, generator=generator).to(dtype) for _ in rows_per_group]
    grouped = grouped_matmul_rows(x_RK, weights, rows_per_group)
    start = 0
    for num_rows, weight_KN in zip(rows_per_group, weights, strict=True):
        expected = matmul_rows(x_RK[start : start + num_rows], weight_KN)
        assert torch.equal(grouped[start : start + num_rows], expected)
        start += num_rows
    assert start == len(grouped)


@pytest.mark.parametrize("exact_in_half", [False, True])
def test_who_multiplies_changes_no_bit(monkeypatch: pytest.MonkeyPatch, exact_in_half: bool):
    """The BLAS or the loops, few rows or many: a machine chooses by what is quicker (`most_few`)."""
    x_RK, weight_KN = operands(200, 512, 416, torch.float32)
    weight = narrowed(weight_KN.bfloat16().float() if exact_in_half else weight_KN)
    found = []
    for most in (0, 64, sys.maxsize):
        monkeypatch.setattr("kernels.rows.most_few", lambda most=most: most)
        found.append(matmul_rows(x_RK, weight))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_rows_are_padded_to_the_next_multiple_and_never_to_none():
    for num_rows in range(3 * ROW_TILE):
        padded_to = padded_rows(num_rows)
        assert padded_to % ROW_MULTIPLE == 0
        assert max(num_rows, 1) <= padded_to < max(num_rows, 1) + ROW_MULTIPLE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inner", "outputs"), [(128, 64), (400, 33), (32, 16)])
def test_heads_with_weights_of_their_own_do_not_know_how_many_rows_there_are(inner, outputs, dtype):
    """Rows and heads lie apart, as slices of what is wider."""
    generator = torch.Generator().manual_seed(inner)
    wide = torch.randn(72, 3, inner + 8, generator=generator).to(dtype)
    weight_HKN = torch.randn(3, inner, outputs, generator=generator).bfloat16().to(dtype)
    whole = wide.new_zeros(72, 3, outputs)
    matmul_heads(wide[..., 8:], weight_HKN, whole)
    expected = torch.einsum("rhk,hkn->rhn", wide[..., 8:].double(), weight_HKN.double()).to(dtype)
    torch.testing.assert_close(whole, expected, rtol=1e-2, atol=1e-2 if dtype != torch.float32 else 1e-4)
    for num_rows in range(row_multiple(dtype, wide.device), 73, row_multiple(dtype, wide.device)):
        out = wide.new_zeros(num_rows, 3, outputs + 5)
        for weights in (weight_HKN, narrowed(weight_HKN)):
            matmul_heads(wide[72 - num_rows :, :, 8:], weights, out[..., :outputs])
            assert torch.equal(out[..., :outputs], whole[72 - num_rows :])
        assert not out[..., outputs:].any()
