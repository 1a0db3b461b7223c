"""Tokens sampled on the device are those of the sampler, whoever else is asked."""

from __future__ import annotations

from random import Random

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

import kernels.choose_token
from model.device_sampler import sample_from_device
from model.sampler import Draw, sample
from model.sampling import Sampling

WIDTH = 700


def draw(position: int, **told: object) -> Draw:
    sampling = Sampling(max_tokens=9, **told)  # type: ignore[arg-type]
    return Draw(sampling=sampling, position=position, prompt_ids=(), emitted_ids=())


def draws() -> list[Draw]:
    rng = Random(1)
    plain = [draw(i, seed=i, logprobs=i % 2 or None) for i in range(6)]
    cut = [
        draw(
            i,
            seed=i,
            temperature=rng.choice([0.01, 0.5, 1.0, 2.0]),
            top_k=rng.choice([0, 1, 5, 200, 9999]),
            top_p=rng.choice([1.0, 0.9, 0.3, 1e-9]),
            min_p=rng.choice([0.0, 0.05, 1.0]),
        )
        for i in range(24)
    ]
    others = [draw(1, logit_bias=((7, 3.0),)), draw(2, temperature=0.0, logprobs=2), draw(3, logprobs=3)]
    return [*plain, *cut, *others]


def test_sampled_tokens_are_the_samplers(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.choose_token, "BLOCK", 256)  # so that a row takes several
    asked = draws()
    logits_BV = torch.randn(len(asked) + 2, WIDTH, device=device) * 2
    logits_BV[3, 40:] = logits_BV[3, 39]  # ties
    rows = [row + 2 for row in range(len(asked))]
    told = sample_from_device(logits_BV, rows, asked)
    wanted = sample(logits_BV[rows].cpu(), asked)
    assert [one.token_id for one in told] == [one.token_id for one in wanted]
    assert len({one.token_id for one in told}) > 10
    for one, other in zip(told, wanted, strict=True):
        assert (one.logprob is None) == (other.logprob is None) and len(one.top) == len(other.top)
        assert one.logprob is None or one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_a_sampled_token_knows_no_neighbour(device: torch.device) -> None:
    asked = draws()[:12]
    logits_BV = torch.randn(len(asked), WIDTH, device=device) * 2
    together = sample_from_device(logits_BV, range(len(asked)), asked)
    for row in (0, 5, 11):
        assert sample_from_device(logits_BV, [row], [asked[row]]) == [together[row]]
