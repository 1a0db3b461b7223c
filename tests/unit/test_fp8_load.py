"""An FP8 checkpoint on a device: what was released, to the last bit, and nothing else read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.fp8 import quantize_blocks
from kernels.fp8_rows import GROUP, Fp8Weight
from kernels.int8 import Int8Weight
from kernels.rows import Weight, whole
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.decoder import Decoder, Layer
from model.fields import ConfigError
from model.fp8_load import load_fp8_model
from model.fp8_places import Room, tensors_of_model
from model.fp8_weights import Fp8Dense, Fp8Layer, Fp8Model, Fp8Moe
from model.load import load_decoder, load_expert
from model.names import is_fp8_linear, mtp_copies
from model.shards import CheckpointError
from model.tiny import TinyShape, config_json, write_tiny
from model.true_width import true_width
from model.write import INDEX, SCALE

CPU = torch.device("cpu")
RAGGED = TinyShape(  # no width is a whole number of blocks, but heads' rotary rows lie in one block each
    hidden=160,
    layers=2,
    experts=16,
    moe_intermediate=48,
    dense_intermediate=144,
    heads=3,
    q_lora=136,
    kv_lora=144,
    nope=64,
    rope=16,
    value=32,
    index_heads=2,
    index_dim=32,
    index_topk=16,
    context=4096,
)


def plain(weight: Weight, head: int = 0) -> Tensor:
    """[K, N] of a model for a CPU."""
    assert not isinstance(weight, Int8Weight)
    return whole(weight, head)


def fitting() -> st.SearchStrategy[TinyShape]:
    """Shapes whose heads may be moved in place; every other width is free."""
    return st.builds(
        replace,
        st.just(RAGGED),
        hidden=st.sampled_from([96, 128, 160, 272]),
        moe_intermediate=st.sampled_from([16, 48, 128, 144]),
        dense_intermediate=st.sampled_from([32, 128, 144]),
        heads=st.integers(1, 4),
        q_lora=st.sampled_from([32, 128, 136]),
        kv_lora=st.sampled_from([64, 128, 144, 192]),
        nope=st.sampled_from([32, 128, 192]),
        rope=st.sampled_from([16, 32]),
        value=st.sampled_from([16, 32, 128]),
        index_heads=st.integers(1, 3),
    ).filter(lambda shape: all(in_one_block(shape, head) for head in range(shape.heads)))


def in_one_block(shape: TinyShape, head: int) -> bool:
    """Whether the rotary rows of this head, and of the key, have one scale."""
    ends = [(head + 1) * (shape.nope + shape.rope), shape.kv_lora + shape.rope]
    return all((end - shape.rope) // GROUP == (end - 1) // GROUP for end in ends)


def load(directory: Path, *, draft: bool = True, threads: int = 2) -> tuple[ModelConfig, Fp8Model]:
    checkpoint = Checkpoint.open(directory)
    config = checkpoint.config_to_serve(int(draft))
    return config, load_fp8_model(checkpoint.reader(), config, CPU, threads)


def pieces(weight: Fp8Weight, *rows: int) -> Iterator[Tensor]:
    """fp32, one by one, of what is stacked in it; all else is zero."""
    weight.check("weight")
    rest = weight.float()
    at = 0
    for count in rows:
        yield rest[at : at + count].clone()
        rest[at : at + count] = 0
        at += -(-count // GROUP) * GROUP
    assert at == len(rest)
    assert not rest.any(), "padding is zero"


def check_equal(found: Tensor, wanted: Tensor) -> None:
    """`found` may be wider by zeros."""
    rows, columns = wanted.shape
    assert torch.equal(found[:rows, :columns], wanted)
    assert not found[:, columns:].any()


def check_layer(config: ModelConfig, found: Fp8Layer, wanted: Layer, experts: list[Tensor]) -> None:
    """experts: gate, up and down of each expert that this layer has, the shared one last."""
    indexer, weights, mla = config.indexer, wanted.mla._weights, found.attention
    assert indexer is not None and weights.indexer is not None
    rank, heads = config.q_lora_rank or 0, config.num_heads
    widths = [rank, config.latent_dim, indexer.head_dim]
    wide = torch.split(plain(weights.down_DA).t(), [*widths, indexer.num_heads])
    for got, want in zip(pieces(mla.down, *widths), wide[:3], strict=True):
        check_equal(got, want)
    assert torch.equal(mla.head_weights_HD.float(), wide[3])
    widths = [heads * config.qk_head_dim, indexer.num_heads * indexer.head_dim]
    for got, want in zip(pieces(mla.up, *widths), torch.split(plain(weights.up_KX).t(), widths), strict=True):
        check_equal(got, want)
    absorb, expand = (
        [plain(of, head) for head in range(heads)] for of in (weights.absorb_NPC, weights.expand_NCV)
    )
    both = torch.cat([torch.cat([carry, value.t()]) for carry, value in zip(absorb, expand, strict=True)])
    check_equal(next(pieces(mla.kv_b, len(both))), both)
    check_equal(next(pieces(mla.out, config.hidden_size)), plain(weights.out_VD).t())
    assert torch.equal(mla.norms.query_Q, weights.query_norm_K)
    assert torch.equal(mla.norms.latent_C, weights.latent_norm_C)
    assert torch.equal(mla.norms.index_weight_I, weights.indexer.key_norm_weight_I)
    assert torch.equal(mla.norms.index_bias_I, weights.indexer.key_norm_bias_I)
    assert torch.equal(found.attention_norm_D, wanted.attention_norm_D)
    assert torch.equal(found.ffn_norm_D, wanted.ffn_norm_D)
    stacks = found.ffn
    if isinstance(stacks, Fp8Dense):
        each = [(stacks.gate_up, stacks.down)]
    else:
        assert isinstance(stacks, Fp8Moe) and wanted.gate is not None
        assert torch.equal(stacks.gate_ED.float(), wanted.gate._weight_DE.t())
        assert torch.equal(stacks.bias_E, wanted.gate._bias_E)
        each = [
            (Fp8Weight(gate_up, gate_up_scale), Fp8Weight(down, down_scale))
            for gate_up, gate_up_scale, down, down_scale in zip(
                stacks.gate_up.values_NK,
                stacks.gate_up.scale_NK,
                stacks.down.values_NK,
                stacks.down.scale_NK,
                strict=True,
            )
        ]
    assert len(each) * 3 == len(experts)
    for (gate_up, down), gate, up, out in zip(each, *(experts[i::3] for i in range(3)), strict=True):
        got_gate, got_up = pieces(gate_up, len(gate), len(up))
        check_equal(got_gate, gate)
        check_equal(got_up, up)
        check_equal(next(pieces(down, len(out))), out)


def check_model(directory: Path, config: ModelConfig, found: Fp8Model) -> None:
    """That it is what the loader of the CPU reads, de-quantised."""
    reader = Checkpoint.open(directory).reader()
    wanted: Decoder = load_decoder(reader, config, torch.float32, 64)
    layers = [(found.layers[layer.index], layer) for layer in wanted.layers]
    if wanted.mtp is not None:
        assert found.mtp is not None
        layers.append((found.mtp.layer, wanted.mtp.layer))
        assert torch.equal(found.mtp.join_DE.float(), plain(wanted.mtp.join_ED).t())
        assert torch.equal(found.mtp.embedding_norm_D, wanted.mtp.embedding_norm_D)
        assert torch.equal(found.mtp.hidden_norm_D, wanted.mtp.hidden_norm_D)
        assert torch.equal(found.mtp.norm_D, wanted.mtp.norm_D)
    for got, want in layers:
        mlps = [] if want.mlp is None else [want.mlp]
        if want.shared is not None:
            experts = range(config.num_experts)
            mlps = [load_expert(reader, want.index, expert, torch.float32) for expert in experts]
            mlps.append(want.shared)
        halves = []
        for mlp in mlps:
            halves += [*plain(mlp.gate_up_DF).t().chunk(2), plain(mlp.down_FD).t()]
        check_layer(config, got, want, halves)
    assert torch.equal(found.embedding_VD.float(), wanted._head.embedding_VD)
    assert torch.equal(found.head_VD.float(), plain(wanted._head.head_DV).t())
    assert torch.equal(found.last_norm_D, wanted._head.norm_D)


@settings(max_examples=2)
@given(shape=fitting())
def test_what_is_on_the_device_is_what_was_released(shape: TinyShape) -> None:
    with TemporaryDirectory() as directory:
        write_tiny(Path(directory), preset=shape, fp8=True)
        config, found = load(Path(directory))
        check_model(Path(directory), config, found)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ragged")
    write_tiny(directory, preset=RAGGED, fp8=True, shard_bytes=300_000)
    return directory


def test_only_what_is_served_is_read_and_that_once(ragged: Path) -> None:
    checkpoint = Checkpoint.open(ragged)
    for draft in (0, 1):
        config = checkpoint.config_to_serve(draft)
        told = []
        reader = checkpoint.reader(told.append, total_names=tensors_of_model(config))
        model = load_fp8_model(reader, config, CPU, 3)
        assert (model.mtp is None) == (draft == 0)
        assert reader.bytes_read == checkpoint.stored_bytes(tensors_of_model(config))
        assert told[-1].bytes_read == told[-1].bytes_total == reader.bytes_read
    everything = sum(tensor.num_bytes for tensor in checkpoint.tensors.values())
    assert reader.bytes_read + checkpoint.stored_bytes(mtp_copies(config)) == everything


def test_a_load_may_stand_in_inference_mode(ragged: Path) -> None:
    """Which is of a thread, and the loader has others."""
    _, plain = load(ragged)
    with torch.inference_mode():
        _, found = load(ragged)
    assert torch.equal(found.layers[1].attention.up.float(), plain.layers[1].attention.up.float())


def test_checksum_is_that_of_one_thread(ragged: Path) -> None:
    checksums = []
    for threads in (1, 4):
        checkpoint = Checkpoint.open(ragged)
        reader = checkpoint.reader()
        load_fp8_model(reader, checkpoint.config_to_serve(1), CPU, threads)
        checksums.append(reader.checksum())
    assert checksums[0] == checksums[1]


def test_a_wide_checkpoint_is_quantised_within_half_a_step_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny(tmp_path, preset=RAGGED, fp8=False)
    config, found = load(tmp_path)
    linears = [name for name in tensors_of_model(config) if is_fp8_linear(name)]
    assert f"{len(linears)} weights are not stored in FP8: quantised, as {min(linears)}" in caplog.text
    wanted = load_decoder(Checkpoint.open(tmp_path).reader(), config, torch.float32, 64)
    out = plain(wanted.layers[0].mla._weights.out_VD)
    got = found.layers[0].attention.out.float()[:160, : out.shape[0]]
    assert not torch.equal(got, out.t())
    assert ((got - out.t()).abs() <= out.t().abs() / 16 + out.abs().max() / 448).all()


@pytest.mark.parametrize("name", ["self_attn.indexer.weights_proj", "mlp.gate", "eh_proj"])
def test_what_the_release_leaves_wide_may_be_in_fp8(ragged: Path, tmp_path: Path, name: str) -> None:
    """Its scales count, as they do for the loader of the CPU."""
    for file in ragged.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = f"model.layers.2.{name}.weight"
    index = json.loads((tmp_path / INDEX).read_text())
    shard = tmp_path / index["weight_map"][changed]
    tensors = load_file(shard)
    tensors[changed], tensors[changed + SCALE] = quantize_blocks(tensors[changed], (GROUP, GROUP))
    save_file(tensors, shard)
    index["weight_map"][changed + SCALE] = shard.name
    (tmp_path / INDEX).write_text(json.dumps(index))
    checkpoint = Checkpoint.open(tmp_path)
    model = load_fp8_model(checkpoint.reader(), checkpoint.config_to_serve(1), CPU, 1)
    assert model.mtp is not None and isinstance(model.mtp.layer.ffn, Fp8Moe)
    found = {
        "self_attn.indexer.weights_proj": model.mtp.layer.attention.head_weights_HD,
        "mlp.gate": model.mtp.layer.ffn.gate_ED,
        "eh_proj": model.mtp.join_DE,
    }
    assert torch.equal(found[name], checkpoint.reader().read(changed, torch.bfloat16))


def test_weights_that_cannot_be_quantised_are_named(tmp_path: Path) -> None:
    write_tiny(tmp_path, preset=RAGGED, fp8=False)
    name = "model.layers.0.self_attn.o_proj.weight"
    shard = tmp_path / json.loads((tmp_path / INDEX).read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name][3, 4] = torch.nan
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=rf"{shard.name}: tensor {name}.*NaN or infinity"):
        load(tmp_path)


def test_rotary_rows_that_would_leave_their_scale_are_refused() -> None:
    raw = config_json(
        replace(RAGGED, kv_lora=120), vocab_size=16, indexer=True, fp8=True, dtype=torch.bfloat16
    )
    with pytest.raises(ConfigError, match=r"kv_a_proj_with_mqa.*row 12\d .*scale block of 128"):
        Room(ModelConfig.from_dict(raw), torch.device("meta")).model()


def test_a_missing_or_cut_tensor_is_named_whichever_thread_meets_it(ragged: Path, tmp_path: Path) -> None:
    for file in ragged.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    checkpoint = Checkpoint.open(tmp_path)
    config = checkpoint.config_to_serve(1)
    victim = checkpoint.tensor("model.layers.1.mlp.experts.7.up_proj.weight").file
    victim.write_bytes(victim.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=victim.name):
        load_fp8_model(checkpoint.reader(), config, CPU, 4)


def test_true_heads_turn_within_their_blocks() -> None:
    """192 rows a head: the rotary 64 end where a block or a half block ends."""
    config = replace(
        true_width(moe_layers=0), vocab_size=16, hidden_size=GROUP, intermediate_size=GROUP, num_experts=16
    )
    room = Room(config, torch.device("meta"))
    room.model()
    moved = [place for place in room.places if place.order is not None]
    assert [len(place.order) for place in moved if place.order is not None] == [576, 24576]
