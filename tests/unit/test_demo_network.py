"""What is trained is what is served: one function, written twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from demo import design
from demo.export import write_checkpoint
from demo.network import Network, Packed, Passed
from demo.parameters import Parameters, make_parameters, unstacked
from demo.precision import BLOCK, Arithmetic
from kernels.fp8 import dequantize_blocks
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.names import is_fp8_linear
from model.tiny import SCALE, config_json
from tests.shoals import local_parts
from tests.unit.test_reference import logits_of_every_token, relative

SHAPE = replace(  # the embedded model's with less of everything, but matrices of several ragged blocks
    design.SHAPE, hidden=160, layers=3, heads=4, moe_intermediate=16, dense_intermediate=192
)
VOCAB_SIZE = 256
RAW = config_json(SHAPE, vocab_size=VOCAB_SIZE, indexer=True, fp8=True, dtype=torch.bfloat16)
LENGTH = 150  # well past index_topk


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.from_dict(RAW)


@pytest.fixture(scope="module")
def parameters(config: ModelConfig) -> Parameters:
    """Large enough that attention, gates and indexers matter, unlike at the start of training."""
    made = make_parameters(config, 3, torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in made.values():
            if value.dim() > 1:
                value.mul_(3.0)
            else:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return made


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, parameters: Parameters) -> Path:
    path = tmp_path_factory.mktemp("demo")
    write_checkpoint(path, RAW, parameters)
    return path


@pytest.fixture(scope="module")
def stored(directory: Path, parameters: Parameters) -> Parameters:
    return as_stored(directory, parameters)


def as_stored(directory: Path, parameters: Parameters) -> Parameters:
    """The parameters of these names as the checkpoint rounds them."""
    reader = Checkpoint.open(directory).reader()
    flat = {name: reader.read(name, torch.float32) for name in unstacked(parameters)}
    rounded: Parameters = {}
    for name, value in parameters.items():
        head, found, tail = name.partition(".mlp.experts.")
        if not found:
            rounded[name] = flat[name]
        else:
            each = [flat[f"{head}.mlp.experts.{expert}.{tail}"] for expert in range(len(value))]
            rounded[name] = torch.stack(each)
    return rounded


def tokens() -> Tensor:
    return torch.randint(16, VOCAB_SIZE, (1, LENGTH), generator=torch.Generator().manual_seed(5))


def passed(config: ModelConfig, parameters: Parameters, tokens_BT: Tensor, documents_BT: Tensor) -> Passed:
    network = Network(config, parameters, Arithmetic(precision="fp32"))
    with torch.no_grad():
        return network.forward(Packed(tokens_BT=tokens_BT, documents_BT=documents_BT), attention="sparse")


def passed_densely(config: ModelConfig, parameters: Parameters) -> Tensor:
    network = Network(config, parameters, Arithmetic(precision="fp32"))
    packed = Packed(tokens_BT=tokens(), documents_BT=torch.ones(1, LENGTH, dtype=torch.int64))
    with torch.no_grad():
        return network.forward(packed, attention="dense").hidden_BTD


def test_the_checkpoint_serves_the_logits_that_were_trained(
    config: ModelConfig, stored: Parameters, directory: Path
) -> None:
    network = Network(config, stored, Arithmetic(precision="fp32"))
    out = passed(config, stored, tokens(), torch.ones(1, LENGTH, dtype=torch.int64))
    trained = network.logits(out.hidden_BTD)[0]
    served = logits_of_every_token(local_parts(directory), tokens()[0].tolist(), [64, 128, LENGTH])
    assert relative(served, trained) < 1e-5


def test_fp8_training_multiplies_with_the_weights_that_are_stored(
    parameters: Parameters, directory: Path
) -> None:
    reader = Checkpoint.open(directory).reader()
    arithmetic = Arithmetic(precision="fp8")
    name = "model.layers.2.self_attn.kv_b_proj.weight"
    assert is_fp8_linear(name)
    assert torch.equal(arithmetic.operand(parameters[name], BLOCK).float(), reader.read(name, torch.float32))
    stacked = "model.layers.2.mlp.experts.down_proj.weight"
    one = reader.read("model.layers.2.mlp.experts.7.down_proj.weight", torch.float32)
    assert torch.equal(arithmetic.operand(parameters[stacked], BLOCK)[7].float(), one)


def test_documents_of_a_packed_row_do_not_see_each_other(config: ModelConfig, parameters: Parameters) -> None:
    alone = passed(config, parameters, tokens(), torch.ones(1, LENGTH, dtype=torch.int64))
    before = torch.randint(16, VOCAB_SIZE, (1, 40), generator=torch.Generator().manual_seed(6))
    both = torch.cat([before, tokens()], 1)
    documents = torch.cat([torch.ones_like(before), torch.full_like(tokens(), 2)], 1)
    packed = passed(config, parameters, both, documents)
    assert relative(packed.hidden_BTD[:, 40:], alone.hidden_BTD) < 1e-4
    assert relative(packed.mtp_BTD[:, 40:-1], alone.mtp_BTD[:, :-1]) < 1e-4  # the last reads one token ahead


def test_a_token_sees_how_far_others_are_and_not_where_they_stand(
    config: ModelConfig, parameters: Parameters
) -> None:
    def at(positions: Tensor) -> Tensor:
        network = Network(config, parameters, Arithmetic(precision="fp32"))
        ones = torch.ones(1, LENGTH, dtype=torch.int64)
        packed = Packed(tokens_BT=tokens(), documents_BT=ones, positions_BT=positions[None])
        with torch.no_grad():
            return network.forward(packed, attention="dense").hidden_BTD

    plain = passed_densely(config, parameters)
    places = torch.arange(LENGTH)
    assert torch.equal(at(places), plain)
    assert relative(at(places + 7), plain) < 1e-4
    assert relative(at(places + 7 * (places > 20)), plain) > 1e-2


def test_the_gradient_of_the_index_loss_reaches_only_the_indexers(
    config: ModelConfig, parameters: Parameters
) -> None:
    network = Network(config, parameters, Arithmetic(precision="fp32"))
    packed = Packed(tokens_BT=tokens()[:, :80], documents_BT=torch.ones(1, 80, dtype=torch.int64))
    network.forward(packed, attention="warmup").index_loss.backward()  # type: ignore[no-untyped-call]
    moved = {name for name, value in parameters.items() if value.grad is not None and bool(value.grad.any())}
    for value in parameters.values():
        value.grad = None
    assert moved == {name for name in parameters if ".indexer." in name}


def test_every_parameter_but_indexers_and_biases_gets_a_gradient_from_the_two_losses(
    config: ModelConfig, parameters: Parameters
) -> None:
    network = Network(config, parameters, Arithmetic(precision="fp32"))
    packed = Packed(tokens_BT=tokens(), documents_BT=torch.ones(1, LENGTH, dtype=torch.int64))
    out = network.forward(packed, attention="dense")
    (
        network.logits(out.hidden_BTD).logsumexp(-1).sum() + network.logits(out.mtp_BTD).square().sum()
    ).backward()  # type: ignore[no-untyped-call]
    still = {name for name, value in parameters.items() if value.grad is None or not bool(value.grad.any())}
    for value in parameters.values():
        value.grad = None
    assert still == {name for name in parameters if ".indexer." in name or name.endswith("correction_bias")}


def test_scales_are_powers_of_two_so_that_stored_weights_are_exact_in_bf16(directory: Path) -> None:
    from safetensors import safe_open

    checkpoint = Checkpoint.open(directory)
    name = "model.layers.1.mlp.experts.3.gate_proj.weight"
    with safe_open(directory / "model-00001-of-00001.safetensors", framework="pt") as file:
        weight, scale = file.get_tensor(name), file.get_tensor(name + SCALE)
    assert torch.equal(torch.frexp(scale)[0], torch.full_like(scale, 0.5))
    assert checkpoint.config.fp8_block == (128, 128)
    wide = dequantize_blocks(weight, scale, (128, 128), torch.float32)
    assert torch.equal(dequantize_blocks(weight, scale, (128, 128), torch.bfloat16).float(), wide)
