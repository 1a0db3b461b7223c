"""A tiny checkpoint whose drafts are often right.

Nobody trained it: attention and networks say little, so that a token follows mostly from the one before it,
and the MTP layer starts from that token alone. Knows nothing of engines.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.tiny import write_tiny

BRANCHES = ("o_proj.weight", "down_proj.weight")
HEADS = ("lm_head.weight", "shared_head.head.weight")
BRANCH_GAIN = 0.25  # about half of the greedy drafts hold
HEAD_GAIN = 2.0  # surer of the next token, so that sampled drafts hold too


def write_foreseeable(directory: Path) -> None:
    config = write_tiny(directory, preset="test", seed=7)
    [shard] = directory.glob("*.safetensors")
    tensors = {name: _tempered(name, value) for name, value in load_file(shard).items()}
    mtp, hidden = f"model.layers.{config.num_layers}", config.hidden_size
    of_token, of_hidden = torch.eye(hidden), torch.zeros(hidden, hidden)
    tensors[f"{mtp}.eh_proj.weight"] = torch.cat([of_token, of_hidden], 1).bfloat16()
    tensors[f"{mtp}.shared_head.norm.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, shard, metadata={"format": "pt"})


def _tempered(name: str, value: Tensor) -> Tensor:
    if name.endswith(BRANCHES):
        return value * BRANCH_GAIN
    return value * HEAD_GAIN if name.endswith(HEADS) else value
