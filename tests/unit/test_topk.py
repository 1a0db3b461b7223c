"""The k largest, ties to the lowest position, however many ties there are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.topk import SHORT_ROW, topk_lowest, topk_lowest_reference

WIDTHS = st.one_of(st.integers(1, 20), st.integers(SHORT_ROW - 2, SHORT_ROW + 3), st.integers(60, 400))


def by_hand(row: list[float], k: int) -> list[int]:
    return sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k])


@settings(max_examples=80, deadline=None)
@given(WIDTHS, st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**31), st.data())
def test_it_is_the_stable_sort_for_any_number_of_ties(width, rows, num_values, seed, data):
    k = data.draw(st.integers(1, width))
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, float("-inf"), 2.5, 1e-45, float("inf")])
    scores_RN = values[torch.randint(0, num_values, (rows, width), generator=generator)]
    chosen = topk_lowest(scores_RN, k)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == [by_hand(row, k) for row in scores_RN.tolist()]
    assert torch.equal(chosen, topk_lowest_reference(scores_RN, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "k"), [(64, 8), (65, 8), (256, 8), (3000, 2048), (2049, 2048)])
def test_random_scores_of_every_dtype(dtype: torch.dtype, width: int, k: int):
    scores_RN = torch.randn(5, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    assert torch.equal(topk_lowest(scores_RN, k), topk_lowest_reference(scores_RN, k))


@pytest.mark.parametrize("width", [SHORT_ROW, SHORT_ROW + 1, 300])
def test_of_equals_the_first_are_taken(width: int):
    assert topk_lowest(torch.zeros(2, width), 5).tolist() == [[0, 1, 2, 3, 4]] * 2
    hidden = torch.full((1, width), float("-inf"))
    hidden[0, [7, 11]] = 1.0
    assert topk_lowest(hidden, 4).tolist() == [[0, 1, 7, 11]]


@pytest.mark.parametrize("width", [10, SHORT_ROW, SHORT_ROW + 1, 300])
def test_a_rows_choice_does_not_depend_on_its_neighbours(width: int):
    generator = torch.Generator().manual_seed(3)
    scores_RN = torch.randint(0, 3, (40, width), generator=generator).float()
    together = topk_lowest(scores_RN, 8)
    for row in range(40):
        assert torch.equal(topk_lowest(scores_RN[row : row + 1], 8), together[row : row + 1])


@pytest.mark.parametrize("width", [10, SHORT_ROW, SHORT_ROW + 1, 300])
@pytest.mark.parametrize("num_nan", [1, 5, 10])
def test_a_row_with_nan_gets_k_places_of_its_own_and_its_neighbours_keep_theirs(width: int, num_nan: int):
    """A row of ties chooses more at first by as much as the spoiled one chooses less."""
    spoiled = torch.arange(width).float()
    spoiled[:num_nan] = float("nan")
    ties = torch.zeros(width)
    ties[8:] = -1.0
    ties[: 8 + num_nan] = ties[: 8 + num_nan].clamp(min=0.0)
    chosen = topk_lowest(torch.stack([ties, spoiled, ties]), 8)
    assert chosen[0].tolist() == chosen[2].tolist() == list(range(8))
    nan_first = sorted([*range(min(num_nan, 8)), *range(width - max(0, 8 - num_nan), width)])
    assert chosen[1].tolist() == nan_first


def test_all_of_a_row_is_all_of_it():
    assert topk_lowest(torch.randn(1, 100), 100).tolist() == [list(range(100))]
