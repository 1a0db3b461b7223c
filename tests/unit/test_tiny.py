"""Tiny checkpoints: whole, the same for the same seed, and read by transformers as by us."""

import hashlib
import json

import pytest
import torch

from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.names import is_fp8_linear, mtp_copies, mtp_tensors, num_values, required_tensors
from model.tiny import config_json, presets, write_tiny
from tests.unit.test_config import RELEASED


def digests(directory):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())}


def config_of(preset, indexer=True):
    shape = presets()[preset]
    vocabulary = max(272, shape.vocabulary)
    raw = config_json(shape, vocab_size=vocabulary, indexer=indexer, fp8=False, dtype=torch.bfloat16)
    return ModelConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("test", (0.5, 1)), ("laptop", (5, 8)), ("bench", (82, 88)), ("peers", (85, 87))],
)
def test_presets_have_the_promised_size(preset, millions):
    count = num_values(required_tensors(config_of(preset)).values())
    assert millions[0] < count / 1e6 < millions[1]


@pytest.mark.parametrize("preset", presets())
def test_presets_have_every_part_of_the_released_model(preset):
    config = config_of(preset)
    assert (config.num_expert_groups, config.num_kept_groups, config.num_experts_per_token) == (8, 4, 8)
    assert (config.num_shared_experts, config.num_mtp_layers, config.num_dense_layers) == (1, 1, 1)
    assert config.num_layers >= 3
    assert config.indexer is not None and config.indexer.num_heads >= 16
    assert config.indexer.topk < config.max_position_embeddings // 8
    assert config.rope.is_yarn and config.rope.softmax_factor > 1
    for shape in required_tensors(config).values():
        assert all(size % 16 == 0 or size == config.latent_dim for size in shape)


def test_config_json_has_the_released_keys():
    raw = config_json(presets()["test"], vocab_size=272, indexer=True, fp8=True, dtype=torch.bfloat16)
    assert raw.keys() >= RELEASED.keys()
    assert raw["rope_scaling"].keys() == RELEASED["rope_scaling"].keys()
    assert raw["architectures"] == ["DeepseekV32ForCausalLM"]


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("indexer", [False, True])
def test_every_tensor_of_the_config_is_written(tmp_path, indexer, fp8):
    config = write_tiny(tmp_path, preset="test", indexer=indexer, fp8=fp8, shard_bytes=100_000)
    checkpoint = Checkpoint.open(tmp_path)
    names = required_tensors(config) | mtp_tensors(config)
    checkpoint.check(names)
    assert checkpoint.config == config
    assert (config.indexer is not None, config.fp8_block is not None) == (indexer, fp8)
    scales = {f"{name}_scale_inv" for name in names if fp8 and is_fp8_linear(name)}
    assert checkpoint.tensors.keys() == names.keys() | scales | mtp_copies(config).keys()
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) > 5


@pytest.mark.parametrize("fp8", [False, True])
def test_the_same_seed_writes_the_same_bytes(tmp_path, fp8):
    for global_seed, name in enumerate(("first", "second")):
        torch.manual_seed(global_seed)  # has no say
        write_tiny(tmp_path / name, preset="test", seed=3, fp8=fp8, shard_bytes=500_000)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


def test_the_bytes_of_a_seed_are_the_same_on_every_machine(tmp_path):
    """If this changes on purpose, the texts that tests and demos expect of tiny models change too."""
    config = write_tiny(tmp_path, preset="test", seed=3)
    reader = Checkpoint.open(tmp_path).reader()
    for name in required_tensors(config):
        reader.read_raw(name)
    assert reader.checksum() == "b975fd9193855031b8bdd7682f2b136e"


def test_another_seed_changes_every_tensor(tmp_path):
    config = write_tiny(tmp_path / "a", preset="test", seed=0)
    write_tiny(tmp_path / "b", preset="test", seed=1)
    a, b = Checkpoint.open(tmp_path / "a").reader(), Checkpoint.open(tmp_path / "b").reader()
    for name in required_tensors(config) | mtp_tensors(config):
        assert not torch.equal(a.read_raw(name), b.read_raw(name)), name


def test_weights_do_not_depend_on_shards_or_storage(tmp_path):
    config = write_tiny(tmp_path / "wide", preset="test", dtype=torch.float32, shard_bytes=1 << 30)
    write_tiny(tmp_path / "fp8", preset="test", fp8=True, shard_bytes=100_000)
    wide, fp8 = Checkpoint.open(tmp_path / "wide").reader(), Checkpoint.open(tmp_path / "fp8").reader()
    for name in required_tensors(config):
        expected = wide.read(name, torch.float32)
        # E4M3 keeps 3 mantissa bits: within 1/16 of a value, or of the block's least normal number.
        assert torch.allclose(fp8.read(name, torch.float32), expected, rtol=1 / 15, atol=2e-4), name


def test_mtp_copies_repeat_embedding_and_head(tmp_path):
    config = write_tiny(tmp_path, preset="test")
    reader = Checkpoint.open(tmp_path).reader()
    for copy, name in mtp_copies(config).items():
        assert torch.equal(reader.read_raw(copy), reader.read_raw(name))


def test_special_ids_and_vocabulary_are_the_callers(tmp_path):
    config = write_tiny(tmp_path, preset="test", vocab_size=300, bos_token_id=298, eos_token_id=299)
    assert (config.vocab_size, config.bos_token_id, config.eos_token_ids) == (300, 298, (299,))
    assert Checkpoint.open(tmp_path).tensor("lm_head.weight").shape == (300, 64)


def test_progress_ends_at_the_whole(tmp_path):
    seen = []
    write_tiny(tmp_path, preset="test", shard_bytes=500_000, progress=lambda *told: seen.append(told))
    total = json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    assert seen == sorted(set(seen)), "bytes written only grow"
    assert seen[-1] == (total, total)
    assert [written for written, _ in seen] == sorted(written for written, _ in seen)


def test_writing_that_is_cut_short_leaves_no_index(tmp_path):
    def stop(written, total):
        raise KeyboardInterrupt

    write_tiny(tmp_path, preset="test")
    with pytest.raises(KeyboardInterrupt):
        write_tiny(tmp_path, preset="test", seed=1, progress=stop)
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="'huge': expected one of test, laptop, bench"):
        write_tiny(tmp_path, preset="huge")


@pytest.mark.parametrize(
    ("indexer", "theirs"), [(True, "DeepseekV32ForCausalLM"), (False, "DeepseekV3ForCausalLM")]
)
def test_transformers_loads_every_weight_as_our_reader_does(transformers, tmp_path, indexer, theirs):
    config = write_tiny(tmp_path, preset="test", indexer=indexer, shard_bytes=400_000)
    model, report = getattr(transformers, theirs).from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert all(name.startswith(f"model.layers.{config.num_layers}.") for name in report["unexpected_keys"])
    reader = Checkpoint.open(tmp_path).reader()
    packed = model.state_dict()
    for name in required_tensors(config):
        assert torch.equal(reader.read(name, torch.float32), in_transformers(packed, name, config)), name


def in_transformers(state, name, config):
    """transformers packs the experts of a layer: gate and up in one tensor [E, 2F, D], down in another."""
    if ".experts." not in name:
        return state[name]
    prefix, rest = name.split(".experts.")
    expert, leaf, _ = rest.split(".")
    if leaf == "down_proj":
        return state[f"{prefix}.experts.down_proj"][int(expert)]
    gate, up = state[f"{prefix}.experts.gate_up_proj"][int(expert)].split(config.moe_intermediate_size)
    return gate if leaf == "gate_proj" else up


def test_greedy_text_is_varied_and_depends_on_the_whole_prompt(transformers, tmp_path):
    config = write_tiny(tmp_path, preset="test")
    model = transformers.DeepseekV32ForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    )
    prompt = torch.randint(2, 256, (1, 48), generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    prompt[1, 0] += 1
    with torch.no_grad():
        text = model.generate(prompt, max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0)[
            :, 48:
        ]
        logits = model(prompt).logits
    assert len(set(text[0].tolist())) > 10
    assert text[0].tolist() != text[1].tolist()
    assert 1.0 < logits.std().item() < 4.0
    assert logits.shape[-1] == config.vocab_size
