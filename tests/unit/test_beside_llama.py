"""llama.cpp beside Shoal: the GGUF holds the checkpoint once and, where llama.cpp is, says the same."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.beside_llama import BATCHES, SHOAL, Measured, decode_rate, table
from bench.gguf_file import ALIGNMENT, gguf
from bench.gguf_layout import ARCH, GgufError, layout, metadata, write_gguf
from bench.llama_process import PYTHON, llama_is_there, llama_of
from bench.pipe import PipeError, piped
from bench.timing import Answer, make_prompts
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.names import required_tensors
from model.sampling import Sampling
from model.tiny import TinyShape, config_json, preset_shape, write_tiny
from tests.shoals import generate, local_engine

SEEN = replace(preset_shape("test"), index_dim=64, index_topk=32, rope=16)  # llama.cpp turns 64 dims at least


def config_of(shape: TinyShape, *, indexer: bool = True) -> ModelConfig:
    return ModelConfig.from_dict(
        config_json(shape, vocab_size=272, indexer=indexer, fp8=False, dtype=torch.float32)
    )


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[list[int], torch.dtype, torch.Tensor]]]:
    """A reader from the specification alone: metadata, and per tensor dims as stored, type and values."""
    file = io.BytesIO(path.read_bytes())

    def unpack(form: str) -> Any:
        values = struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))
        return values[0] if len(values) == 1 else values

    def text() -> str:
        return file.read(unpack("Q")).decode()

    assert file.read(4) == b"GGUF" and unpack("I") == 3
    num_tensors, num_keys = unpack("QQ")
    kinds = {4: lambda: unpack("I"), 6: lambda: unpack("f"), 7: lambda: unpack("?"), 8: text}
    keys = {text(): kinds[unpack("I")]() for _ in range(num_keys)}
    infos = []
    for _ in range(num_tensors):
        name, num_dims = text(), unpack("I")
        infos.append((name, [unpack("Q") for _ in range(num_dims)], *unpack("IQ")))
    start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    tensors = {}
    for name, dims, kind, offset in infos:
        assert offset % ALIGNMENT == 0
        dtype = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}[kind]
        values = torch.frombuffer(
            bytearray(file.getbuffer()), dtype=dtype, count=math.prod(dims), offset=start + offset
        )
        tensors[name] = (dims, dtype, values)
    return keys, tensors


@settings(max_examples=20, deadline=None)
@given(
    layers=st.integers(1, 3),
    experts=st.sampled_from([16, 32]),
    heads=st.integers(1, 3),
    nope=st.integers(1, 5),
    value=st.integers(1, 5),
    kv_lora=st.integers(1, 6),
)
def test_every_value_of_the_checkpoint_is_placed_once(layers, experts, heads, nope, value, kv_lora):
    shape = replace(
        preset_shape("test"),
        hidden=6,
        moe_intermediate=3,
        dense_intermediate=5,
        q_lora=4,
        index_heads=2,
        layers=layers,
        experts=experts,
        heads=heads,
        nope=nope,
        value=value,
        kv_lora=kv_lora,
    )
    config = config_of(shape)
    numbered, total = {}, 0
    for name, of in required_tensors(config).items():
        numbered[name] = torch.arange(total, total + math.prod(of)).view(of)
        total += math.prod(of)
    placed = list(layout(config))
    made = [one.make(numbered.__getitem__) for one in placed]
    assert [tuple(tensor.shape) for tensor in made] == [one.shape for one in placed]
    assert len({one.name for one in placed}) == len(placed)
    assert torch.equal(torch.cat([tensor.flatten() for tensor in made]).sort().values, torch.arange(total))


def test_keys_and_values_of_a_head_lie_as_the_absorbed_form_reads_them():
    config = config_of(preset_shape("test"))
    both = torch.randn(config.num_heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank)
    made = {one.name: one.make for one in layout(config) if one.name.startswith("blk.1.attn_")}
    keys, values = (made[f"blk.1.attn_{part}_b.weight"](lambda _: both) for part in "kv")
    head = both.view(config.num_heads, -1, config.kv_lora_rank)[2]
    assert torch.equal(keys[2], head[: config.qk_nope_head_dim].T)
    assert torch.equal(values[2], head[config.qk_nope_head_dim :])


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_checkpoint_comes_back_from_its_gguf(tmp_path: Path, weights: torch.dtype):
    write_tiny(tmp_path, preset="test")
    checkpoint = Checkpoint.open(tmp_path)
    write_gguf(checkpoint, tmp_path / "model.gguf", weights)
    keys, tensors = read_gguf(tmp_path / "model.gguf")
    assert keys["general.architecture"] == ARCH
    assert {key: keys[f"{ARCH}.{key}"] for key in ("block_count", "attention.indexer.top_k")} == {
        "block_count": 3,
        "attention.indexer.top_k": 32,
    }
    reader = checkpoint.reader()
    for name, source in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.2.indexer.k_norm.bias": "model.layers.2.self_attn.indexer.k_norm.bias",
        "blk.1.exp_probs_b.bias": "model.layers.1.mlp.gate.e_score_correction_bias",
    }.items():
        dims, dtype, values = tensors[name]
        stored = reader.read(source, torch.float32)
        assert dims == list(reversed(stored.shape)), "GGUF names the innermost dimension first"
        assert dtype == (weights if len(dims) > 1 else torch.float32)
        assert torch.equal(values.float(), stored.flatten())
    third = reader.read("model.layers.1.mlp.experts.3.down_proj.weight", torch.float32)
    dims, _, values = tensors["blk.1.ffn_down_exps.weight"]
    assert dims == [32, 64, 32] and torch.equal(values.view(32, 64, 32)[3].float(), third)


def test_without_an_indexer_there_is_no_gguf():
    with pytest.raises(GgufError, match="model_type is deepseek_v3: only deepseek_v32"):
        metadata(config_of(preset_shape("test"), indexer=False))


def test_a_tensor_that_was_not_declared_is_not_written(tmp_path: Path):
    entries = [("a", (2,), torch.float32), ("b", (2,), torch.float32)]
    with pytest.raises(AssertionError, match="declared was"), gguf(tmp_path / "x", {}, entries) as file:
        file.write("b", torch.zeros(2))
    with pytest.raises(AssertionError, match="1 declared tensors"), gguf(tmp_path / "x", {}, entries) as file:
        file.write("a", torch.zeros(2))


def test_a_process_that_ends_is_quoted():
    command = [sys.executable, "-c", "import sys; print('out of paper', file=sys.stderr)"]
    with piped("printer", command, {}) as pipe, pytest.raises(PipeError, match="printer ended: out of paper"):
        pipe.ask({})
    command = [sys.executable, "-c", "print(input())"]
    with piped("echo", command, {}) as pipe:
        assert pipe.ask({"a": [1]}) == {"a": [1]}


def test_only_the_time_in_which_all_decode_counts():
    early = Answer(token_ids=(1,) * 4, sent_s=0.0, arrivals_s=(1.0, 2.0, 3.0, 4.0))
    late = Answer(token_ids=(1,) * 4, sent_s=0.0, arrivals_s=(2.0, 3.0, 4.0, 5.0))
    assert decode_rate([early, late]) == 2.0
    with pytest.raises(ValueError, match="ask for more new tokens"):
        decode_rate([early, Answer(token_ids=(1,), sent_s=0.0, arrivals_s=(9.0,))])


def test_the_table_compares_with_the_quickest_llama():
    rates = {SHOAL: (30.0, 50.0), "llama.cpp a": (10.0, 100.0), "llama.cpp b": (20.0, 25.0)}
    measured = [
        Measured(system=name, batch=batch, rates=[rate])
        for name, both in rates.items()
        for batch, rate in zip(BATCHES, both, strict=True)
    ]
    assert f"| {SHOAL} | 30.0 (30.0 to 30.0) | 1.50 | 50.0 (50.0 to 50.0) | 0.50 |" in table(measured)
    assert json.dumps([one.rates for one in measured])


@pytest.mark.skipif(not llama_is_there(), reason=f"no package llama_cpp here, nor where {PYTHON} points")
def test_llama_cpp_says_what_shoal_says(tmp_path: Path):
    """Beyond index_topk, so that the indexer has its say."""
    write_tiny(tmp_path, preset=SEEN)
    [prompt] = make_prompts("same", count=1, num_tokens=3 * SEEN.index_topk)
    sampling = Sampling(max_tokens=16, temperature=0.0, ignore_eos=True)
    [ours] = generate(local_engine(tmp_path), [prompt], sampling)
    with llama_of(tmp_path, torch.float32) as llama:
        [theirs] = llama.generate(1, [prompt], new_tokens=16, batch=1, exact=True)
        logits = llama.logits(prompt)
    assert theirs.token_ids == tuple(ours.token_ids)
    assert logits.shape == (len(prompt), 272) and int(logits[-1].argmax()) == ours.token_ids[0]
