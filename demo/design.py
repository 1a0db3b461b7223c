"""The embedded model's shape.

Every part of DeepSeek-V3.2, small. Knows nothing of training and of tensors.
"""

from __future__ import annotations

from typing import Any

import torch

from model.tiny import TinyShape, config_json

SHAPE = TinyShape(
    hidden=256,
    layers=6,
    experts=32,
    moe_intermediate=48,
    dense_intermediate=512,
    heads=8,
    q_lora=128,
    kv_lora=96,
    nope=32,
    rope=16,
    value=32,
    index_heads=16,
    index_dim=32,
    index_topk=64,
    context=4096,
)
VOCAB_SIZE = 1024
TRAIN_TOKENS = SHAPE.original_context  # a training sequence; YaRN stretches it fourfold


def demo_config_json() -> dict[str, Any]:
    """config.json of the checkpoint, FP8 weights."""
    return config_json(SHAPE, vocab_size=VOCAB_SIZE, indexer=True, fp8=True, dtype=torch.bfloat16)
