"""Trained parameters to a checkpoint that any DeepSeek-V3.2 loader reads.

FP8 with 128x128 scales (powers of two: the very weights that FP8 training multiplied with), HF names, one
shard and its index. Knows nothing of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from demo.parameters import BIAS, Parameters, trained_shapes, unstacked
from kernels.fp8 import quantize_blocks
from model.config import ModelConfig
from model.names import is_fp8_linear, num_values
from model.tiny import FP8_BLOCK
from model.write import SCALE

SHARD = "model-00001-of-00001.safetensors"
RECORD = "training.json"


def write_checkpoint(directory: Path, config_json: Mapping[str, Any], parameters: Parameters) -> None:
    """Write config.json, the shard and its index; the same parameters write the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, value in sorted(unstacked(parameters).items()):
        tensors |= _stored(name, value.detach().cpu())
    (directory / SHARD).write_bytes(save(tensors, metadata={"format": "pt"}))
    total = sum(value.numel() * value.itemsize for value in tensors.values())
    weight_map = dict.fromkeys(tensors, SHARD)
    _write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )
    _write_json(directory / "config.json", config_json)


def write_record(directory: Path, *, command: str, seed: int) -> None:
    """training.json: what made this checkpoint, and the hash of every file of it."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.name != RECORD)
    config = ModelConfig.from_file(directory / "config.json")
    index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    record = {
        "command": command,
        "seed": seed,
        "parameters": num_values(trained_shapes(config).values()),
        "bytes": sum(path.stat().st_size for path in files),
        "tensors": len(index["weight_map"]),
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    _write_json(directory / RECORD, record)


def _stored(name: str, value: Tensor) -> dict[str, Tensor]:
    """The tensors that the file holds for one parameter."""
    if is_fp8_linear(name):
        weight, scale = quantize_blocks(value, FP8_BLOCK, power_of_two=True)
        return {name: weight, name + SCALE: scale}
    return {name: value.float() if name.endswith(BIAS) else value.to(torch.bfloat16)}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
