"""Few rows without the BLAS: the bits that it gives many, from weights of half the size too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.compiled import IS_COMPILED, compiled
from kernels.few_rows import FEW, LONGEST_BLOCKS, Blocks, blocks_of, cut, cut_off, product
from kernels.panel import PANEL, Panels
from kernels.rows import matmul_rows, narrowed

# Whole tiles of columns, a vector, some beyond; blocks of one and of several slabs, and odd ones.
SHAPES = ((48, 64), (80, 33), (208, 96), (385, 17), (512, 416), (1024, 40))


def operands(rows: int, inner: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(inner)
    weight_KN = torch.randn(inner, outputs, generator=generator) / inner**0.5
    return torch.randn(rows, inner, generator=generator), weight_KN.bfloat16().float()


def compiled_blocks(inner: int, outputs: int) -> Blocks:
    blocks = blocks_of(inner, outputs)
    if blocks is None:
        pytest.skip("no numba, or a BLAS that cuts its sums in an unknown way")
    return blocks


def test_code_that_nobody_can_keep_is_compiled_all_the_same() -> None:
    """numba refuses to cache what is in no file, as where nothing that it could write to is there."""
    if not IS_COMPILED:
        pytest.skip("no numba")
    space: dict[str, Any] = {}
    exec("def twice(x):\n    return 2 * x\n", space)
    assert compiled("int64(int64)")(space["twice"])(21) == 42


@pytest.mark.parametrize(("inner", "outputs"), SHAPES)
def test_few_rows_have_the_bits_that_the_blas_gives_many(inner: int, outputs: int) -> None:
    blocks = compiled_blocks(inner, outputs)
    x_RK, weight_KN = operands(100, inner, outputs)
    many_RN = matmul_rows(x_RK, weight_KN)
    for start, num_rows in ((0, 1), (7, 3), (20, 4), (31, 6), (100 - FEW, FEW)):
        few_RN = product(x_RK[start : start + num_rows], weight_KN, blocks)
        assert torch.equal(few_RN, many_RN[start : start + num_rows])


@pytest.mark.parametrize(("inner", "outputs"), SHAPES)
def test_a_weight_of_half_the_size_changes_no_bit_for_few_or_many(inner: int, outputs: int) -> None:
    compiled_blocks(inner, outputs)
    x_RK, weight_KN = operands(132, inner, outputs)
    half_KN = narrowed(weight_KN)
    assert isinstance(half_KN, Panels)
    for num_rows in (4, FEW, FEW + 4, 132):
        assert torch.equal(matmul_rows(x_RK[:num_rows], half_KN), matmul_rows(x_RK[:num_rows], weight_KN))


@pytest.mark.parametrize("outputs", [1, PANEL - 1, PANEL, 3 * PANEL + 7])
def test_panels_hold_the_weight_of_every_head(outputs: int) -> None:
    weight_HKN = torch.randn(3, 5, outputs).bfloat16().float()
    panels = Panels.of(weight_HKN)
    assert all(torch.equal(panels.whole(head), weight_HKN[head]) for head in range(3))


def test_a_weight_that_would_lose_a_bit_is_kept_whole() -> None:
    _, weight_KN = operands(1, 64, 48)
    weight_KN[5, 7] = 1 + 2.0**-8
    assert narrowed(weight_KN) is weight_KN


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_no_other(bad: float) -> None:
    blocks = compiled_blocks(80, 33)
    x_RK, weight_KN = operands(8, 80, 33)
    expected = product(x_RK, weight_KN, blocks)
    x_RK[3, 5] = bad
    spoiled = product(x_RK, weight_KN, blocks)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert not spoiled[3].isfinite().any()
    assert torch.equal(spoiled[others], expected[others])


@settings(max_examples=200)
@given(st.integers(1, 20_000), st.sampled_from(LONGEST_BLOCKS), st.sampled_from([cut, cut_off]))
def test_blocks_cover_the_sum_and_none_is_too_long(
    num_inputs: int, longest: int, way: Callable[[int, int], list[int]]
) -> None:
    blocks = way(num_inputs, longest)
    assert sum(blocks) == num_inputs
    assert min(blocks) > 0 and max(blocks) <= longest
