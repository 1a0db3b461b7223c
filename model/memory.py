"""How much memory a model takes, from its config alone.

Counts values; a caller who knows the dtype multiplies. Knows nothing of tensors and of machines.
"""

from __future__ import annotations

from model.config import ModelConfig
from model.names import (
    Shape,
    attention_tensors,
    expert_tensors,
    is_fp8_linear,
    mtp_attention_tensors,
    num_values,
)


def weight_values(config: ModelConfig) -> tuple[int, int]:
    """(attention side, one copy of the routed experts), MTP layers included."""
    attention = num_values((attention_tensors(config) | mtp_attention_tensors(config)).values())
    experts = num_values(expert_tensors(config, 0, 0).values())
    return attention, len(config.routed_layers) * config.num_experts * experts


def cache_values_per_token(config: ModelConfig) -> int:
    """Of one token over all layers, those of MTP too: a latent and an index key each."""
    index_dim = config.indexer.head_dim if config.indexer else 0
    return (config.latent_dim + index_dim) * (config.num_layers + config.num_mtp_layers)


def fp8_weight_bytes(config: ModelConfig) -> int:
    """All of the model on a GPU: linears in FP8 with a scale a block of 128 x 128, the rest in bf16."""
    shapes = attention_tensors(config) | mtp_attention_tensors(config)
    expert = expert_tensors(config, 0, 0)
    copies = len(config.routed_layers) * config.num_experts
    return _fp8_bytes(shapes) + copies * _fp8_bytes(expert)


def fp8_cache_bytes_per_token(config: ModelConfig) -> int:
    """As model/fp8_cache.py: latents and index keys in FP8, an fp32 scale per 128, rotary keys in fp16."""
    latent = config.kv_lora_rank + config.kv_lora_rank // 128 * 4 + 2 * config.qk_rope_head_dim
    index = config.indexer.head_dim + 4 if config.indexer else 0
    return (latent + index) * (config.num_layers + config.num_mtp_layers)


def _fp8_bytes(shapes: dict[str, Shape]) -> int:
    quantised = num_values(shape for name, shape in shapes.items() if is_fp8_linear(name))
    return 2 * num_values(shapes.values()) - quantised + quantised * 4 // 128**2
