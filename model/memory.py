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


def fp8_step_bytes(config: ModelConfig, rows: int, many: int, context_tokens: int) -> int:
    """What steps take beside weights, cache and buffers: an upper bound of what was measured at true width.

    rows: of the largest graph. many: of long chunks at once, 0 if there are none.
    """
    graphs = rows * (250 * config.hidden_size + 8 * context_tokens)
    chunks = (2 << 30) + many * 70 * config.hidden_size if many else 0
    return (1 << 30) + graphs + chunks


def pages_that_fit(config: ModelConfig, free_bytes: int, page_tokens: int) -> int:
    """Pages of the FP8 cache in so many bytes."""
    return max(0, free_bytes) // (page_tokens * fp8_cache_bytes_per_token(config))


def _fp8_bytes(shapes: dict[str, Shape]) -> int:
    quantised = num_values(shape for name, shape in shapes.items() if is_fp8_linear(name))
    return 2 * num_values(shapes.values()) - quantised + quantised * 4 // 128**2
