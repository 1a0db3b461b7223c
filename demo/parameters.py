"""The trained tensors by name, and how they start.

Names are those of the checkpoint, but that the experts of a layer are one stacked tensor,
`...mlp.experts.gate_proj.weight` [experts, out, in]. Knows nothing of the forward pass.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from model.config import ModelConfig
from model.names import Shape, mtp_tensors, required_tensors

Parameters = dict[str, Tensor]
BIAS = "e_score_correction_bias"
_EXPERT = re.compile(r"^(.*\.mlp\.experts)\.(\d+)\.(\w+\.weight)$")
_TO_RESIDUAL = ("o_proj.weight", "down_proj.weight")


def trained_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Shape of every trained tensor; the gates' biases too, which no gradient moves."""
    shapes: dict[str, Shape] = {}
    for name, shape in (required_tensors(config) | mtp_tensors(config)).items():
        match = _EXPERT.match(name)
        if match is None:
            shapes[name] = shape
        else:
            shapes[f"{match[1]}.{match[3]}"] = (config.num_experts, *shape)
    return shapes


def make_parameters(config: ModelConfig, seed: int, device: torch.device) -> Parameters:
    """fp32 masters: linears with std 0.5 / sqrt(inputs), those into the residual stream smaller by depth."""
    generator = torch.Generator().manual_seed(seed)
    depth = math.sqrt(2 * (config.num_layers + config.num_mtp_layers))
    made: Parameters = {}
    for name, shape in trained_shapes(config).items():
        if name.endswith((BIAS, "norm.bias")):
            value = torch.zeros(shape)
        elif len(shape) == 1:
            value = torch.ones(shape)
        else:
            std = 0.5 / math.sqrt(shape[-1]) / (depth if name.endswith(_TO_RESIDUAL) else 1.0)
            value = torch.empty(shape).normal_(0.0, std, generator=generator)
        made[name] = value.to(device).requires_grad_(not name.endswith(BIAS))
    return made


def unstacked(parameters: Parameters) -> Parameters:
    """The same by the names of the checkpoint, one tensor an expert."""
    flat: Parameters = {}
    for name, value in parameters.items():
        head, found, tail = name.partition(".mlp.experts.")
        if not found:
            flat[name] = value
            continue
        flat |= {f"{head}.mlp.experts.{expert}.{tail}": one for expert, one in enumerate(value.unbind(0))}
    return flat


def is_indexer(name: str) -> bool:
    return ".indexer." in name
