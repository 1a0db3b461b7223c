"""The mixture and the attention of training: what they choose, weigh and lose, by loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from demo.attention import index_divergence, kept_keys
from demo.moe import MoeTrainer
from demo.network import Network, Packed
from demo.parameters import BIAS, Parameters, make_parameters
from demo.precision import Arithmetic
from model.config import ModelConfig
from model.gate import Gate
from model.tiny import config_json
from tests.unit.tiny_demo import SHAPE

FP32 = Arithmetic(precision="fp32")
MLP = "model.layers.1.mlp"


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    raw = config_json(SHAPE, vocab_size=64, indexer=True, fp8=False, dtype=torch.float32)
    return ModelConfig.from_dict(raw)


@pytest.fixture
def parameters(config: ModelConfig) -> Parameters:
    """Larger than at the start of training, so that gates and attention are decided."""
    made = make_parameters(config, 1, torch.device("cpu"))
    with torch.no_grad():
        for value in made.values():
            if value.dim() > 1:
                value.mul_(3.0)
    return made


def mixture(config: ModelConfig, parameters: Parameters) -> MoeTrainer:
    return MoeTrainer(config, MLP, parameters, FP32)


def hidden(seed: int, batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, SHAPE.hidden, generator=torch.Generator().manual_seed(seed))


def bias(parameters: Parameters) -> Tensor:
    return parameters[f"{MLP}.gate.{BIAS}"]


def swiglu(parameters: Parameters, prefix: str, h: Tensor, expert: int | None = None) -> Tensor:
    stacks = (parameters[f"{MLP}.{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
    gate, up, down = (stack if expert is None else stack[expert] for stack in stacks)
    return (F.silu(h @ gate.t()) * (h @ up.t())) @ down.t()


def test_the_choice_is_that_of_the_served_gate_and_the_bias_never_weighs(
    config: ModelConfig, parameters: Parameters
) -> None:
    with torch.no_grad():
        bias(parameters).copy_(torch.linspace(-0.3, 0.3, 32).view(4, 8).t().flatten())
        h = hidden(2, 2, 12)
        routed = mixture(config, parameters).forward(h)
        gate = Gate(config, parameters[f"{MLP}.gate.weight"].t().contiguous(), bias(parameters))
        weights, experts = gate.choose(h.flatten(0, 1))
        assert torch.equal(routed.experts_MK.sort(-1).values, experts)
        assert torch.equal(routed.load_E, torch.bincount(experts.flatten(), minlength=32).float())
        expected = swiglu(parameters, "shared_experts", h.flatten(0, 1))
        for row in range(len(expected)):
            for weight, expert in zip(weights[row], experts[row].tolist(), strict=True):
                expected[row] += weight * swiglu(parameters, "experts", h.flatten(0, 1)[row], expert)
        torch.testing.assert_close(routed.out_MD, expected, rtol=1e-4, atol=1e-5)


def test_a_bias_moves_by_gamma_against_overload(config: ModelConfig, parameters: Parameters) -> None:
    load = torch.full((32,), 5.0)
    load[3], load[4] = 9.0, 1.0  # mean 5
    mixture(config, parameters).move_bias(load, torch.tensor(0.25))
    assert bias(parameters)[:5].tolist() == [0.0, 0.0, 0.0, -0.25, 0.25]
    assert not bias(parameters)[5:].any()


def test_the_bias_alone_brings_a_skewed_gate_to_balance(config: ModelConfig, parameters: Parameters) -> None:
    h = hidden(3, 1, 256) + 1.0  # what all rows share makes some experts everyone's favourites
    moe = mixture(config, parameters)
    peaks = []
    with torch.no_grad():
        for step in range(150):
            load = moe.forward(h).load_E
            moe.move_bias(load, torch.tensor(0.02 if step < 100 else 0.002))
            peaks.append(float(load.max() / load.mean()))
    assert peaks[0] > 2.5
    assert max(peaks[-10:]) < 1.35
    assert float(load.min()) > 0


def test_the_sequence_loss_is_the_papers_formula(config: ModelConfig, parameters: Parameters) -> None:
    h = hidden(4, 3, 10)
    with torch.no_grad():
        routed = mixture(config, parameters).forward(h)
    gate = parameters[f"{MLP}.gate.weight"].detach()
    total = 0.0
    for sequence in range(3):
        scores = torch.sigmoid(h[sequence] @ gate.t())
        chosen = routed.experts_MK.view(3, 10, 8)[sequence]
        for expert in range(32):
            f = 32 / (8 * 10) * sum(int(expert in row.tolist()) for row in chosen)
            p = sum(float(row[expert] / row.sum()) for row in scores) / 10
            total += f * p
    assert float(routed.sequence_loss) == pytest.approx(total / 3, rel=1e-5)


def test_no_gradient_reaches_a_bias(config: ModelConfig, parameters: Parameters) -> None:
    routed = mixture(config, parameters).forward(hidden(5, 1, 12))
    (routed.out_MD.square().sum() + routed.sequence_loss).backward()  # type: ignore[no-untyped-call]
    gate = parameters[f"{MLP}.gate.weight"].grad
    assert gate is not None
    assert gate.any()
    assert bias(parameters).grad is None


def causal(length: int) -> Tensor:
    return torch.ones(1, length, length, dtype=torch.bool).tril()


def test_every_query_keeps_its_best_visible_keys() -> None:
    scores = torch.randn(1, 30, 30, generator=torch.Generator().manual_seed(6))
    kept = kept_keys(scores, causal(30), 6)
    for query in range(30):
        best = scores[0, query, : query + 1].topk(min(6, query + 1)).indices
        assert set(kept[0, query].nonzero().flatten().tolist()) == set(best.tolist())


def test_documents_bound_what_is_kept() -> None:
    documents = torch.tensor([[1] * 9 + [2] * 11])
    visible = (documents[:, :, None] == documents[:, None, :]) & causal(20)
    kept = kept_keys(torch.randn(1, 20, 20, generator=torch.Generator().manual_seed(7)), visible, 6)
    assert not (kept & ~visible).any()
    assert torch.equal(kept.sum(-1), visible.sum(-1).clamp(max=6))


def test_among_equal_scores_the_first_keys_are_kept_as_in_serving() -> None:
    kept = kept_keys(torch.zeros(1, 10, 10), causal(10), 4)
    assert torch.equal(kept, causal(10) & (torch.arange(10) < 4))


def test_the_index_loss_is_the_divergence_of_the_attention_from_the_indexers_softmax() -> None:
    generator = torch.Generator().manual_seed(8)
    visible = causal(12)
    logits = torch.randn(1, 3, 12, 12, generator=generator).masked_fill(~visible[:, None], -1e30)
    probs = torch.softmax(logits, -1)
    mean = probs.mean(1)
    perfect = mean.clamp(min=1e-30).log() + torch.randn(1, 12, 1, generator=generator)  # any offset per query
    assert float(index_divergence(probs, perfect, visible).abs().max()) < 1e-6
    other = torch.randn(1, 12, 12, generator=generator)
    got = index_divergence(probs, other, visible)[0]
    for query in range(12):
        p, q = mean[0, query, : query + 1], torch.softmax(other[0, query, : query + 1], -1)
        assert float(got[query]) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-5)
    assert float(got[1:].min()) > 1e-4


def test_sparse_with_room_for_every_key_is_dense_and_with_less_it_is_not(
    config: ModelConfig, parameters: Parameters
) -> None:
    network = Network(config, parameters, FP32)
    tokens = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(9))
    packed = Packed(tokens_BT=tokens, documents_BT=torch.ones_like(tokens))
    with torch.no_grad():
        dense = network.forward(packed, attention="dense").hidden_BTD
        for topk in (20, 25):
            wide = network.forward(packed, attention="sparse", topk=topk).hidden_BTD
            torch.testing.assert_close(wide, dense)
        narrow = network.forward(packed, attention="sparse").hidden_BTD
    first = config.indexer.topk if config.indexer else 0
    torch.testing.assert_close(narrow[:, :first], dense[:, :first])
    assert float((narrow[:, first:] - dense[:, first:]).abs().max()) > 1e-2
