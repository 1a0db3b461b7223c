"""The gate against the paper, tie for tie."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig
from model.gate import Gate

SHAPES = st.sampled_from(
    [(8, 4, 4, 8), (8, 4, 2, 4), (4, 4, 1, 3), (8, 2, 4, 3), (1, 16, 1, 8), (4, 16, 4, 6)]
)


@pytest.fixture(scope="module")
def tiny(tiny_v32: Path) -> ModelConfig:
    return ModelConfig.from_file(tiny_v32 / "config.json")


def shaped(tiny: ModelConfig, groups: int, size: int, kept: int, top: int) -> ModelConfig:
    return dataclasses.replace(
        tiny,
        num_experts=groups * size,
        num_expert_groups=groups,
        num_kept_groups=kept,
        num_experts_per_token=top,
    )


def by_hand(config: ModelConfig, scores: list[float], choice: list[float]) -> tuple[list[int], list[float]]:
    """Experts (ascending) and weights of one token; sums of two in fp32, as they compare."""
    size = config.num_experts // config.num_expert_groups
    groups = [choice[g * size : (g + 1) * size] for g in range(config.num_expert_groups)]
    of_group = [float(torch.tensor(sorted(g)[-2:]).sum()) for g in groups]
    kept = sorted(range(len(groups)), key=lambda g: (-of_group[g], g))[: config.num_kept_groups]
    open_experts = [e for e in range(config.num_experts) if e // size in kept]
    best = sorted(open_experts, key=lambda e: (-choice[e], e))[: config.num_experts_per_token]
    chosen = sorted(best)
    total = sum(scores[e] for e in chosen)
    return chosen, [scores[e] / total * config.routed_scaling_factor for e in chosen]


def check(config: ModelConfig, logits_TE: torch.Tensor, bias_E: torch.Tensor) -> None:
    """Run the gate on given scores: the rows are the logits, the weight is the identity."""
    gate = Gate(config, torch.eye(config.num_experts), bias_E)
    weights_TK, experts_TK = gate.choose(logits_TE)
    scores_TE = torch.sigmoid(logits_TE)
    for token in range(len(logits_TE)):
        experts, weights = by_hand(config, scores_TE[token].tolist(), (scores_TE[token] + bias_E).tolist())
        assert experts_TK[token].tolist() == experts
        torch.testing.assert_close(weights_TK[token], torch.tensor(weights))
    assert experts_TK.dtype == torch.int64
    assert weights_TK.dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 2**31))
def test_experts_and_weights_are_those_of_the_paper(tiny: ModelConfig, shape, seed):
    config = shaped(tiny, *shape)
    generator = torch.Generator().manual_seed(seed)
    check(
        config,
        torch.randn(8, config.num_experts, generator=generator) * 3,
        torch.randn(config.num_experts, generator=generator),
    )


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(0, 2**31), st.integers(1, 3))
def test_exact_ties_of_experts_and_of_groups_go_to_the_lowest(tiny: ModelConfig, shape, seed, num_values):
    config = shaped(tiny, *shape)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor([0.0, 1.0, -2.0])
    pick = torch.randint(0, num_values, (8, config.num_experts), generator=generator)
    bias_E = torch.tensor([0.0, 0.25])[torch.randint(0, 2, (config.num_experts,), generator=generator)]
    check(config, levels[pick], bias_E)


def test_when_everything_is_equal_the_first_experts_of_the_first_groups_win(tiny: ModelConfig):
    config = shaped(tiny, 8, 4, 4, 8)
    gate = Gate(config, torch.zeros(5, 32), torch.zeros(32))
    weights_TK, experts_TK = gate.choose(torch.randn(4, 5))
    assert experts_TK.tolist() == [list(range(8))] * 4
    assert weights_TK.tolist() == [[config.routed_scaling_factor / 8] * 8] * 4


def test_the_bias_chooses_but_never_weighs(tiny: ModelConfig):
    config = shaped(tiny, 4, 4, 4, 2)
    logits_TE = torch.zeros(4, 16)
    logits_TE[:, 3] = 5.0
    bias_E = torch.zeros(16)
    bias_E[9] = 100.0
    weights_TK, experts_TK = Gate(config, torch.eye(16), bias_E).choose(logits_TE)
    assert experts_TK.tolist() == [[3, 9]] * 4
    scores = torch.sigmoid(torch.tensor([5.0, 0.0]))
    torch.testing.assert_close(weights_TK[0], scores / scores.sum() * config.routed_scaling_factor)


def test_weights_sum_to_the_scaling_factor_or_are_plain_scores_without_normalisation(tiny: ModelConfig):
    generator = torch.Generator().manual_seed(0)
    logits_TE, bias_E = torch.randn(64, 32, generator=generator), torch.zeros(32)
    weights_TK, _ = Gate(tiny, torch.eye(32), bias_E).choose(logits_TE)
    torch.testing.assert_close(weights_TK.sum(-1), torch.full((64,), tiny.routed_scaling_factor))
    plain = dataclasses.replace(tiny, norm_topk_prob=False)
    weights_TK, experts_TK = Gate(plain, torch.eye(32), bias_E).choose(logits_TE)
    expected = torch.sigmoid(logits_TE).gather(1, experts_TK) * tiny.routed_scaling_factor
    torch.testing.assert_close(weights_TK, expected)


def test_a_tokens_choice_has_the_same_bits_whoever_shares_its_step(tiny: ModelConfig):
    generator = torch.Generator().manual_seed(1)
    rows_TD = torch.randn(200, tiny.hidden_size, generator=generator).bfloat16()
    weight_DE = torch.randn(tiny.hidden_size, 32, generator=generator)
    gate = Gate(tiny, weight_DE, torch.randn(32, generator=generator))
    weights_TK, experts_TK = gate.choose(rows_TD)
    for start, end in [(0, 4), (4, 8), (196, 200), (40, 140)]:
        own_weights, own_experts = gate.choose(rows_TD[start:end])
        assert torch.equal(own_weights, weights_TK[start:end])
        assert torch.equal(own_experts, experts_TK[start:end])
