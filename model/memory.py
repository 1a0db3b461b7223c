"""How much memory a model takes, from its config alone.

Counts values; a caller who knows the dtype multiplies. Knows nothing of tensors and of machines.
"""

from __future__ import annotations

from model.config import ModelConfig
from model.names import attention_tensors, expert_tensors, mtp_attention_tensors, num_values


def weight_values(config: ModelConfig) -> tuple[int, int]:
    """(attention side, one copy of the routed experts), MTP layers included."""
    attention = num_values((attention_tensors(config) | mtp_attention_tensors(config)).values())
    experts = num_values(expert_tensors(config, 0, 0).values())
    return attention, len(config.routed_layers) * config.num_experts * experts


def cache_values_per_token(config: ModelConfig) -> int:
    """Of one token over all layers, those of MTP too: a latent and an index key each."""
    index_dim = config.indexer.head_dim if config.indexer else 0
    return (config.latent_dim + index_dim) * (config.num_layers + config.num_mtp_layers)
