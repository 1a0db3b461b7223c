"""The likeliest token: the first of the largest, with its log probability, whoever else is asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from kernels.greedy import CHUNK, greedy, greedy_reference


def _greedy(logits_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out_3R = torch.full((3, len(logits_RV)), -7, dtype=torch.int32, device=logits_RV.device)
    tokens_R, logprobs_R, finite_R = out_3R[0], out_3R[1].view(torch.float32), out_3R[2]
    greedy(logits_RV, tokens_R, logprobs_R, finite_R)
    return tokens_R, logprobs_R, finite_R.bool()


@pytest.mark.parametrize("width", [7, CHUNK, 2 * CHUNK + 33])
def test_greedy_is_the_reference_and_knows_no_neighbour(device: torch.device, width: int) -> None:
    logits_RV = torch.randn(5, width, device=device) * 3
    tokens_R, logprobs_R, finite_R = _greedy(logits_RV)
    wanted, logprobs, _ = greedy_reference(logits_RV)
    assert torch.equal(tokens_R.long(), wanted) and finite_R.all()
    torch.testing.assert_close(logprobs_R.double(), logprobs, rtol=0, atol=1e-5)  # sums of fp32
    for row in range(5):
        alone = _greedy(logits_RV[row : row + 1].clone())
        assert [one.item() for one in alone] == [tokens_R[row], logprobs_R[row], finite_R[row]]


def test_of_equal_logits_the_lowest_token_is_taken(device: torch.device) -> None:
    logits_RV = torch.zeros(3, 2 * CHUNK + 5, device=device)
    logits_RV[1, [CHUNK + 3, CHUNK + 1, 2 * CHUNK + 4]] = 2.0
    logits_RV[2, [40, 2 * CHUNK]] = 2.0
    assert _greedy(logits_RV)[0].tolist() == [0, CHUNK + 1, 40]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_told_and_spoils_no_other(device: torch.device, odd: float) -> None:
    logits_RV = torch.randn(3, 2 * CHUNK, device=device)
    clean = _greedy(logits_RV)
    logits_RV[1, CHUNK + 1] = odd
    tokens_R, logprobs_R, finite_R = _greedy(logits_RV)
    assert finite_R.tolist() == [True, False, True]
    assert 0 <= tokens_R[1] < 2 * CHUNK
    assert torch.equal(tokens_R[::2], clean[0][::2]) and torch.equal(logprobs_R[::2], clean[1][::2])
