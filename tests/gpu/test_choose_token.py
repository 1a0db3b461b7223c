"""A sampled token is the one that the noise falls on among those that are left, whoever else is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

import kernels.choose_token
from kernels.choose_token import choose_token
from tests.gpu.ahead import Build, resources

# temperature, top_k (0: all), top_p (2: all), min_p
CUTS = [
    (1.0, 0, 2.0, 0.0),
    (0.6, 0, 0.95, 0.0),
    (1.0, 20, 2.0, 0.0),
    (1.3, 100, 0.8, 0.0),
    (1.0, 0, 2.0, 0.05),
    (0.7, 50, 0.9, 0.02),
    (1.0, 1, 2.0, 0.0),
    (1.0, 0, 1e-9, 0.0),
    (1.0, 0, 2.0, 1.0),
    (2.0**-100, 0, 0.9, 0.0),
    (50.0, 0, 0.5, 0.0),
]
NOISES = [0.0, 1e-12, 0.1, 0.37, 0.5, 0.77, 0.999, 1.0 - 2.0**-53]
SLACK = 1e-5  # of the distribution: sums of fp32


def rows_of_logits(width: int) -> Tensor:
    """Peaked, flat, tied at many places, all the same, and one that leads by far."""
    peaked_V, flat_V = torch.randn(width) * 4, torch.randn(width) * 0.01
    tied_V = torch.randint(0, 4, (width,)).float()
    leading_V = torch.randn(width)
    leading_V[width // 2] = 200.0
    return torch.stack([peaked_V, flat_V, tied_V, torch.full((width,), 3.0), leading_V])


def left_by_hand(logits_V: Tensor, cut: tuple[float, int, float, float]) -> tuple[list[int], Tensor]:
    """(ids that are certainly left or may be, weights in fp64, 0 where cut), with every rule in fp64."""
    temperature, top_k, top_p, min_p = cut
    depth_V = (logits_V.max() - logits_V).double()
    order = torch.sort(depth_V, stable=True).indices[: top_k or len(logits_V)]
    weights_N = torch.exp(-depth_V[order] / temperature)
    before_N = (weights_N.cumsum(0) - weights_N) / weights_N.sum()
    is_left_N = (before_N < top_p) & (weights_N >= min_p)
    is_left_N[0] = True
    weights_V = torch.zeros(len(logits_V), dtype=torch.float64)
    weights_V[order[is_left_N]] = weights_N[is_left_N]
    at_the_edge_N = (before_N - top_p).abs() < SLACK
    return [int(i) for i in order[is_left_N | at_the_edge_N]], weights_V


def assert_falls_there(token: int, noise: float, weights_V: Tensor, may_be_left: list[int]) -> None:
    """The token's share of the distribution reaches the noise, give or take what fp32 sums may be off."""
    assert token in set(may_be_left), f"token {token} is cut"
    shares_V = weights_V / weights_V.sum()
    end = float(shares_V[: token + 1].sum())
    start = end - float(shares_V[token])
    assert start - SLACK <= noise <= end + SLACK, f"noise {noise} falls beside {start} ... {end}"


def ask(logits_BV: Tensor, rows: Sequence[int], asked: Sequence[tuple[float, ...]]) -> tuple[Tensor, Tensor]:
    device = logits_BV.device
    return choose_token(
        logits_BV,
        torch.tensor(rows, dtype=torch.int32, device=device),
        torch.tensor(asked, dtype=torch.float64, device=device),
    )


@pytest.mark.parametrize("width", [7, 256, 1037])
def test_the_noise_falls_on_the_token(
    device: torch.device, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.choose_token, "BLOCK", 256)  # so that a row takes several
    logits_BV = rows_of_logits(width).to(device)
    cuts_and_noises = [(cut, noise) for cut in CUTS for noise in NOISES]
    every = 1 if device.type == "cuda" else 13  # the interpreter takes a tenth of a second for one
    for row in range(len(logits_BV)):
        own = cuts_and_noises[row % every :: every]
        asked = [(t, k or width, p, least, noise) for (t, k, p, least), noise in own]
        tokens_R, logprobs_R = ask(logits_BV, [row] * len(asked), asked)
        logprobs_V = torch.log_softmax(logits_BV[row].double().cpu(), -1)
        for (cut, noise), token, logprob in zip(own, tokens_R.tolist(), logprobs_R.tolist(), strict=True):
            may_be_left, weights_V = left_by_hand(logits_BV[row].cpu(), cut)
            assert_falls_there(token, noise, weights_V, may_be_left)
            assert logprob == pytest.approx(float(logprobs_V[token]), abs=1e-4)


def test_a_vocabulary_of_true_width(device: torch.device) -> None:
    logits_BV = (torch.randn(3, 129280) * 2).to(device)
    cuts = CUTS if device.type == "cuda" else CUTS[:3]  # the interpreter takes seconds for one
    asked = [(t, k or 129280, p, least, 0.4) for t, k, p, least in cuts]
    tokens_R, _ = ask(logits_BV, [2] * len(asked), asked)
    for place, cut in enumerate(cuts):
        may_be_left, weights_V = left_by_hand(logits_BV[2].cpu(), cut)
        assert_falls_there(int(tokens_R[place]), 0.4, weights_V, may_be_left)


def test_a_token_knows_no_neighbour(device: torch.device) -> None:
    logits_BV = torch.randn(5, 3000, device=device)
    asked = [(t, k or 3000, p, least, NOISES[3]) for t, k, p, least in CUTS]
    rows = [place % 5 for place in range(len(asked))]
    tokens_R, logprobs_R = ask(logits_BV, rows, asked)
    for place in (0, 4, 10):
        token, logprob = ask(logits_BV[rows[place]][None].clone(), [0], [asked[place]])
        assert (int(token), float(logprob)) == (int(tokens_R[place]), float(logprobs_R[place]))


def test_every_token_is_drawn_as_often_as_it_should_be(device: torch.device) -> None:
    """The noise in equal steps: the shares are counted, not estimated."""
    logits_BV = torch.tensor([[0.0, 2.0, -1.0, 1.0, 2.0, -30.0]], device=device)
    steps = 400 if device.type == "cuda" else 40
    asked = [(1.0, 4, 0.93, 0.0, (step + 0.5) / steps) for step in range(steps)]
    tokens_R, _ = ask(logits_BV, [0] * steps, asked)
    _, weights_V = left_by_hand(logits_BV[0].cpu(), (1.0, 4, 0.93, 0.0))
    assert (weights_V > 0).tolist() == [False, True, False, True, True, False]
    shares = (weights_V / weights_V.sum()).tolist()
    for token, share in enumerate(shares):
        assert math.isclose(int((tokens_R == token).sum()) / steps, share, abs_tol=1 / steps)


@pytest.mark.ahead
def test_the_kernel_fits_an_sm_90() -> None:
    types = {"logits_ptr": "*fp32", "rows_ptr": "*i32", "asked_ptr": "*fp64", "tokens_ptr": "*i32"}
    [found] = resources(
        [
            Build(
                module="kernels.choose_token",
                kernel="_choose_token",
                types={**types, "logprobs_ptr": "*fp32", "width": "i32"},
                constants={"BLOCK": kernels.choose_token.BLOCK, "NUM_BLOCKS": 16},
                num_warps=kernels.choose_token.NUM_WARPS,
                aligned=("width",),
            )
        ]
    )
    found.check()
