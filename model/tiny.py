"""Small random checkpoints in the released layout.

For tests, demos and benchmarks: every tensor of a deepseek_v32 (or deepseek_v3) checkpoint, MTP layer
included, made from a seed with integer arithmetic, so that the bytes are the same on every machine. Knows
nothing of the forward pass, but that linears should keep values near 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.fp8 import quantize_blocks
from model.config import ModelConfig
from model.names import Shape, mtp_copies
from model.noise import seed_of, std_of
from model.write import SCALE, Stored, stored_tensors, write_checkpoint

FP8_BLOCK = (128, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyShape:
    """The dimensions in which the presets differ."""

    hidden: int
    layers: int
    experts: int
    moe_intermediate: int
    dense_intermediate: int
    heads: int
    q_lora: int
    kv_lora: int
    nope: int
    rope: int
    value: int
    index_heads: int
    index_dim: int
    index_topk: int
    context: int
    yarn_factor: int = 4
    vocabulary: int = 0  # tokens beyond those of the byte tokenizer make it so large

    @property
    def original_context(self) -> int:
        return self.context // self.yarn_factor


def presets() -> dict[str, TinyShape]:
    """By name: "test" 0.6M parameters, "laptop" 6.5M, "bench" 85M.

    "peers" has 86M, heads as released and many small experts: what other engines were measured with.
    """
    return {
        "test": TinyShape(
            hidden=64,
            layers=3,
            experts=32,
            moe_intermediate=32,
            dense_intermediate=128,
            heads=4,
            q_lora=48,
            kv_lora=32,
            nope=16,
            rope=8,
            value=16,
            index_heads=16,
            index_dim=16,
            index_topk=32,
            context=4096,
        ),
        "laptop": TinyShape(
            hidden=256,
            layers=4,
            experts=32,
            moe_intermediate=64,
            dense_intermediate=512,
            heads=8,
            q_lora=128,
            kv_lora=64,
            nope=32,
            rope=16,
            value=32,
            index_heads=16,
            index_dim=32,
            index_topk=128,
            context=8192,
        ),
        "bench": TinyShape(
            hidden=512,
            layers=8,
            experts=32,
            moe_intermediate=208,
            dense_intermediate=1536,
            heads=8,
            q_lora=256,
            kv_lora=128,
            nope=64,
            rope=32,
            value=64,
            index_heads=16,
            index_dim=64,
            index_topk=256,
            context=8192,
        ),
        "peers": TinyShape(
            hidden=512,
            layers=6,
            experts=64,
            moe_intermediate=128,
            dense_intermediate=1024,
            heads=8,
            q_lora=256,
            kv_lora=512,
            nope=128,
            rope=64,
            value=128,
            index_heads=16,
            index_dim=64,
            index_topk=256,
            context=16384,
            vocabulary=4096,
        ),
    }


def preset_shape(name: str) -> TinyShape:
    """Raises ValueError that tells the names."""
    shape = presets().get(name)
    if shape is None:
        raise ValueError(f"preset is {name!r}: expected one of {', '.join(presets())}")
    return shape


def write_tiny(
    directory: Path,
    *,
    preset: str | TinyShape = "laptop",
    seed: int = 0,
    vocab_size: int = 272,
    bos_token_id: int = 0,
    eos_token_id: int = 1,
    indexer: bool = True,
    fp8: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = 64 << 20,
    progress: Callable[[int, int], None] | None = None,
) -> ModelConfig:
    """Write a random checkpoint into `directory`; the same arguments write the same bytes.

    `progress` is told (bytes written, bytes in all).
    """
    shape = preset_shape(preset) if isinstance(preset, str) else preset
    raw = config_json(shape, vocab_size=vocab_size, indexer=indexer, fp8=fp8, dtype=dtype)
    raw |= {"bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
    config = ModelConfig.from_dict(raw)
    stored = stored_tensors(config, dtype)
    write_checkpoint(
        directory,
        raw,
        stored,
        lambda name: _make(config, stored, name, seed),
        shard_bytes=shard_bytes,
        progress=progress,
    )
    return config


def config_json(
    shape: TinyShape,
    *,
    vocab_size: int,
    indexer: bool,
    fp8: bool,
    dtype: torch.dtype,
    mtp: bool = True,
) -> dict[str, Any]:
    """config.json with the keys of the released models."""
    kind = "DeepseekV32ForCausalLM" if indexer else "DeepseekV3ForCausalLM"
    raw: dict[str, Any] = {
        "architectures": [kind],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.dense_intermediate,
        "kv_lora_rank": shape.kv_lora,
        "max_position_embeddings": shape.context,
        "model_type": "deepseek_v32" if indexer else "deepseek_v3",
        "moe_intermediate_size": shape.moe_intermediate,
        "moe_layer_freq": 1,
        "n_group": 8,
        "n_routed_experts": shape.experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": shape.heads,
        "num_experts_per_tok": 8,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "num_nextn_predict_layers": int(mtp),
        "q_lora_rank": shape.q_lora,
        "qk_nope_head_dim": shape.nope,
        "qk_rope_head_dim": shape.rope,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": shape.yarn_factor,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": shape.original_context,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "v_head_dim": shape.value,
        "vocab_size": vocab_size,
    }
    if indexer:
        raw["index_head_dim"] = shape.index_dim
        raw["index_n_heads"] = shape.index_heads
        raw["index_topk"] = shape.index_topk
    if fp8:
        raw["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": list(FP8_BLOCK),
        }
    return raw


def _make(config: ModelConfig, stored: Mapping[str, Stored], name: str, seed: int) -> Tensor:
    """One tensor as the file holds it."""
    if name.endswith(SCALE):
        weight = name.removesuffix(SCALE)
        assert config.fp8_block is not None, "only FP8 checkpoints have scales"
        return quantize_blocks(_values(weight, stored[weight][0], seed), config.fp8_block)[1]
    shape, dtype = stored[name]
    values = _values(mtp_copies(config).get(name, name), shape, seed)
    if dtype != torch.float8_e4m3fn:
        return values.to(dtype)
    assert config.fp8_block is not None, "only FP8 checkpoints have FP8 weights"
    return quantize_blocks(values, config.fp8_block)[0]


def _values(name: str, shape: Shape, seed: int) -> Tensor:
    """fp32, of a distribution that keeps activations near 1, decided by seed and name alone."""
    if len(shape) == 2:
        return _uniform(name, shape, seed, std=std_of(name, shape[1]))
    noise = _uniform(name, shape, seed, std=0.05)
    return noise if name.endswith("bias") else noise + 1.0


def _uniform(name: str, shape: Shape, seed: int, *, std: float) -> Tensor:
    """65,536 evenly spaced values around 0: integers and one multiplication are exact on every CPU."""
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    steps = torch.randint(0, 1 << 16, shape, generator=generator, dtype=torch.int32)
    return (steps.float() - 32767.5) * (std * math.sqrt(3.0) / 32768.0)
