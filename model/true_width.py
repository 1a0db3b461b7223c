"""DeepSeek-V3.2 at its true width, with fewer layers.

One dense layer, MoE layers above it, an MTP layer where it is wanted: a piece of the model that fits one GPU.
Its weights are noise, on the device (model/fp8_random.py) or written here. Knows nothing of tokenizers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.names import mtp_copies
from model.noise import Noise
from model.tiny import TinyShape, config_json
from model.write import SCALE, Stored, stored_tensors, write_checkpoint

VOCABULARY = 129280
SHARD_BYTES = 5 << 30


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


def write_true_width(
    directory: Path, raw: Mapping[str, Any], *, seed: int, progress: Callable[[int, int], None] | None = None
) -> ModelConfig:
    """A checkpoint of noise with this config.json, on as many cores as there are.

    `progress` is told (bytes written, bytes in all). Raises ValueError where the disk has no room.
    """
    config = ModelConfig.from_dict(raw)
    stored, same = stored_tensors(config, torch.bfloat16), mtp_copies(config)
    write_checkpoint(
        directory,
        raw,
        stored,
        lambda name: _noise(stored, same.get(name, name), seed),
        shard_bytes=SHARD_BYTES,
        progress=progress,
        threads=len(os.sched_getaffinity(0)),
    )
    return config


def _noise(stored: Mapping[str, Stored], name: str, seed: int) -> Tensor:
    """One tensor as the file holds it."""
    shape, dtype = stored[name]
    noise, tensor = Noise(torch.device("cpu"), seed), torch.empty(shape, dtype=dtype)
    if name.endswith(SCALE):
        weight = name.removesuffix(SCALE)
        noise.fill_scale(weight, tensor, stored[weight][0][1])
    elif dtype == torch.float8_e4m3fn:
        noise.fill_fp8(name, tensor)
    else:
        noise.fill(name, tensor)
    return tensor
