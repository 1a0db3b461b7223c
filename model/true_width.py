"""DeepSeek-V3.2 at its true width, with fewer layers.

One dense layer, MoE layers above it, an MTP layer where it is wanted: a piece of the model that fits one GPU.
Knows nothing of weights.
"""

from __future__ import annotations

from typing import Any

import torch

from model.config import ModelConfig
from model.tiny import TinyShape, config_json

VOCABULARY = 129280


def true_width_json(*, layers: int, mtp: bool, num_experts: int = 256) -> dict[str, Any]:
    """config.json; num_experts: fewer, for tests."""
    shape = TinyShape(
        hidden=7168,
        layers=layers,
        experts=num_experts,
        moe_intermediate=2048,
        dense_intermediate=18432,
        heads=128,
        q_lora=1536,
        kv_lora=512,
        nope=128,
        rope=64,
        value=128,
        index_heads=64,
        index_dim=128,
        index_topk=2048,
        context=163840,
        yarn_factor=40,
    )
    return config_json(shape, vocab_size=VOCABULARY, indexer=True, fp8=True, dtype=torch.bfloat16, mtp=mtp)


def true_width(*, moe_layers: int, num_experts: int = 256, mtp: bool = False) -> ModelConfig:
    """One dense layer and `moe_layers` more; mtp: and one that drafts."""
    return ModelConfig.from_dict(true_width_json(layers=1 + moe_layers, mtp=mtp, num_experts=num_experts))
