"""A slice of DeepSeek-V3.2 at its true width, made of noise: layers, a full cache, a step's inputs.

Knows nothing of what is measured on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.cache import PAGE_TOKENS
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_random import RandomLayers
from model.fp8_step import StepInputs
from model.fp8_weights import Fp8Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Layers and a cache that is full of noise."""

    config: ModelConfig
    layers: list[Fp8Layer]
    last_norm_D: Tensor
    cache: Fp8Cache


def random_slice(config: ModelConfig, num_pages: int, device: torch.device) -> Slice:
    maker = RandomLayers(config, device)
    cache = Fp8Cache(config, num_pages, device)
    fill_with_noise(cache)
    return Slice(
        config=config,
        layers=[maker.layer(index) for index in range(config.num_layers)],
        last_norm_D=torch.ones(config.hidden_size, device=device),
        cache=cache,
    )


def fill_with_noise(cache: Fp8Cache) -> None:
    """As if every slot had been written, with values of a size that attention can take."""
    for latent, key in zip(cache.latents, cache.keys, strict=True):
        for plane in (latent.latent_SC, key.key_SI):
            bytes_SC = plane.view(torch.uint8)
            bytes_SC.random_(0, 256).bitwise_and_(0xDF).bitwise_or_(0x40)  # no NaN: see RandomLayers
        latent.scale_SG.fill_(2.0**-4)
        key.scale_S.fill_(2.0**-4)
        latent.rotary_SR.normal_()


def random_inputs(config: ModelConfig, rows: int, context: int, num_pages: int) -> StepInputs:
    """Every row the last token of a sequence of `context` tokens, on pages scattered in the pool."""
    device = torch.device("cuda")
    each = context // PAGE_TOKENS
    if rows * each > num_pages:
        raise ValueError(f"{rows} sequences of {context} tokens need {rows * each} pages, not {num_pages}")
    pages_RP = torch.randperm(num_pages, device=device)[: rows * each].int().view(rows, each)
    last = torch.full((rows,), context - 1, dtype=torch.int32, device=device)
    return StepInputs(
        hidden_RD=torch.randn(rows, config.hidden_size, device=device).bfloat16(),
        positions_R=last,
        slots_R=pages_RP[:, -1] * PAGE_TOKENS + PAGE_TOKENS - 1,
        lengths_R=last + 1,
        pages_RP=pages_RP,
    )
