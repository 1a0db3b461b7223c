"""A decode step at true width says what the model says, for every row alone and among others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton", reason="needs Triton")

from kernels.absorb import absorb_query_reference, absorb_value_reference
from kernels.expert_gemm import expert_up_reference
from kernels.fp8_rows import Fp8Weight
from kernels.gate_topk import GateShape, gate_topk_reference
from kernels.latent_write import hadamard, latent_write_reference
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_random import RandomLayers
from model.fp8_step import DecodeStep, StepInputs
from model.fp8_walk import WalkTables
from model.fp8_weights import Fp8Attention, Fp8Dense, Fp8Layer, Fp8Moe, latent_shape
from model.rope import inverse_frequencies
from model.true_width import true_width
from tests.gpu.fp8_inputs import relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: true widths"),
]

TOKENS = 40
CHOSEN = [0, 1, 8, 9, 16, 17, 24, 25]  # two of each of the first four groups


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return true_width(moe_layers=1, num_experts=64)


@pytest.fixture(scope="module")
def layers(config: ModelConfig) -> list[Fp8Layer]:
    """The gate's bias chooses CHOSEN whatever comes: noise in FP8 cannot change the routing."""
    maker = RandomLayers(config, torch.device("cuda"))
    made = [maker.layer(index) for index in range(config.num_layers)]
    for layer in made:
        if isinstance(layer.ffn, Fp8Moe):
            layer.ffn.bias_E[CHOSEN] = 10.0
    return made


@torch.inference_mode()
def _decode(config: ModelConfig, layers: list[Fp8Layer], hidden_BTD: Tensor, padding: int = 0) -> Tensor:
    """Sequences token by token, all of a step side by side: [B, T, D] after the last norm."""
    sequences, tokens, width = hidden_BTD.shape
    rows = sequences + padding
    cache = Fp8Cache(config, rows + 1, hidden_BTD.device)
    pages = torch.arange(1, rows + 1, dtype=torch.int32, device="cuda")[:, None]
    inputs = StepInputs(
        hidden_RD=torch.zeros(rows, width, dtype=torch.bfloat16, device="cuda"),
        positions_R=torch.zeros(rows, dtype=torch.int32, device="cuda"),
        slots_R=torch.full((rows,), -1, dtype=torch.int32, device="cuda"),
        lengths_R=torch.zeros(rows, dtype=torch.int32, device="cuda"),
        pages_RP=pages,
    )
    step = DecodeStep(config, inputs, WalkTables(config, 64, hidden_BTD.device))
    norm_D = torch.ones(width, device="cuda")
    out = []
    for position in range(tokens):
        inputs.hidden_RD[:sequences] = hidden_BTD[:, position]
        inputs.positions_R[:sequences] = position
        inputs.slots_R[:sequences] = pages[:sequences, 0] * 64 + position
        inputs.lengths_R[:sequences] = position + 1
        out.append(step.run(layers, cache, norm_D)[:sequences].clone())
    return torch.stack(out, 1)


def test_step_is_the_model(config: ModelConfig, layers: list[Fp8Layer]) -> None:
    torch.manual_seed(1)
    hidden_BTD = torch.randn(2, TOKENS, config.hidden_size, device="cuda").bfloat16()
    out_BTD = _decode(config, layers, hidden_BTD)
    for hidden_TD, out_TD in zip(hidden_BTD, out_BTD, strict=True):
        wanted_TD = _reference(config, layers, hidden_TD)
        assert relative_error(out_TD, wanted_TD) < 0.1, "about 3 % for each product in FP8"
        assert relative_error(out_TD[-1], wanted_TD[-1]) < 0.1


@pytest.mark.parametrize("padding", [0, 13, 60, 125])
def test_bits_of_a_row_do_not_depend_on_its_neighbours(
    config: ModelConfig, layers: list[Fp8Layer], padding: int
) -> None:
    torch.manual_seed(2)
    hidden_BTD = torch.randn(3, 4, config.hidden_size, device="cuda").bfloat16()
    alone = _decode(config, layers, hidden_BTD[:1])
    among = _decode(config, layers, hidden_BTD, padding)
    assert torch.isfinite(alone).all()
    assert torch.equal(among[:1], alone)


@torch.inference_mode()
def _reference(config: ModelConfig, layers: list[Fp8Layer], hidden_TD: Tensor) -> Tensor:
    """fp64 [T, D]: all tokens at once, nothing quantised but the weights; no more keys than index_topk."""
    x_TD = hidden_TD.double()
    for layer in layers:
        x_TD = x_TD + _attend(config, layer.attention, _rms(x_TD))
        h_TD = _rms(x_TD)
        if isinstance(layer.ffn, Fp8Dense):
            up_TF = expert_up_reference(h_TD, layer.ffn.gate_up.float())
            x_TD = x_TD + up_TF @ layer.ffn.down.float().double().t()
            continue
        shape = GateShape(num_experts=64, per_row=8, num_groups=8, kept_groups=4, scaling=2.5, shared=True)
        scores_TE = h_TD @ layer.ffn.gate_ED.double().t()
        weights_TK, _ = gate_topk_reference(scores_TE, layer.ffn.bias_E, shape)
        weights_TK = torch.cat([weights_TK, weights_TK.new_ones(len(weights_TK), 1)], 1)
        for place, expert in enumerate([*CHOSEN, config.num_experts]):
            gate_up = Fp8Weight(layer.ffn.gate_up.values_NK[expert], layer.ffn.gate_up.scale_NK[expert])
            down = Fp8Weight(layer.ffn.down.values_NK[expert], layer.ffn.down.scale_NK[expert])
            out_TD = expert_up_reference(h_TD, gate_up.float()) @ down.float().double().t()
            x_TD = x_TD + out_TD * weights_TK[:, place, None]
    return _rms(x_TD)


def _attend(config: ModelConfig, weights: Fp8Attention, h_TD: Tensor) -> Tensor:
    tokens = len(h_TD)
    shape = latent_shape(config)
    angles = torch.outer(torch.arange(tokens), inverse_frequencies(config.rope, 64)).cuda()
    cos, sin = angles.cos() * config.rope.attention_factor, angles.sin() * config.rope.attention_factor
    down_TX = h_TD @ weights.down.float().double().t()
    query, latent, rotary, _ = latent_write_reference(
        down_TX, shape, weights.norms, cos, sin, hadamard(128, h_TD.device)
    )
    heads = config.num_heads
    up_TNX = (query @ weights.up.float().double().t())[:, : heads * 192].view(tokens, heads, 192)
    carried = absorb_query_reference(up_TNX[..., :128], weights.kv_b)
    first, second = up_TNX[..., 128:].chunk(2, -1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    turned = torch.cat([first * c - second * s, second * c + first * s], -1)
    scores = torch.einsum("tnc,sc->tns", torch.cat([carried, turned], -1), torch.cat([latent, rotary], -1))
    hidden = torch.ones(tokens, tokens, dtype=torch.bool, device=h_TD.device).triu(1)
    probabilities = (scores * config.softmax_scale).masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    gathered = torch.einsum("tns,sc->tnc", probabilities, latent)
    return absorb_value_reference(gathered, weights.kv_b) @ weights.out.float().double().t()


def _rms(x_TD: Tensor) -> Tensor:
    return functional.rms_norm(x_TD, x_TD.shape[-1:], eps=1e-6)
