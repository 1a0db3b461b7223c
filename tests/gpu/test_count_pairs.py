"""Pairs are counted once for each live row, layer by layer, on top of what was there."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from kernels.count_pairs import count_pairs, count_pairs_reference

LAYERS, EXPERTS, PER_ROW = 3, 16, 4


@pytest.mark.parametrize("rows", [1, 5, 64, 200])
def test_counts_are_those_of_live_rows_and_add_up(device: torch.device, rows: int) -> None:
    whole = torch.rand(LAYERS + 1, rows + 7, EXPERTS, device=device).argsort(-1)[..., :PER_ROW].int()
    experts_LRK = whole.contiguous()[1:, :rows]  # as of a larger step, its dense layer left out
    slots_R = torch.randint(0, 900, (rows + 1,), device=device, dtype=torch.int32)[1:]
    slots_R[rows // 2 :: 3] = -1
    pairs_LE = torch.randint(0, 2**40, (LAYERS, EXPERTS), device=device)
    wanted_LE = pairs_LE + count_pairs_reference(experts_LRK, slots_R, EXPERTS)
    count_pairs(experts_LRK, slots_R, pairs_LE)
    assert torch.equal(pairs_LE, wanted_LE)


def test_a_step_without_a_token_counts_nothing(device: torch.device) -> None:
    pairs_LE = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64, device=device)
    experts_LRK = torch.zeros(LAYERS, 6, PER_ROW, dtype=torch.int32, device=device)
    count_pairs(experts_LRK, torch.full((6,), -1, dtype=torch.int32, device=device), pairs_LE)
    assert not pairs_LE.any()


def test_what_does_not_fit_is_refused_with_words(device: torch.device) -> None:
    experts_LRK = torch.zeros(LAYERS, 6, PER_ROW, dtype=torch.int32, device=device)
    slots_R = torch.zeros(6, dtype=torch.int32, device=device)
    pairs_LE = torch.zeros(LAYERS, EXPERTS, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="pairs are of 2 layers"):
        count_pairs(experts_LRK, slots_R, pairs_LE[1:])
    with pytest.raises(ValueError, match=r"pairs are torch\.int32"):
        count_pairs(experts_LRK, slots_R, pairs_LE.int())
    with pytest.raises(ValueError, match="must be dense"):
        count_pairs(experts_LRK[..., :2], slots_R, pairs_LE)
