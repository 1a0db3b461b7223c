"""A slice of DeepSeek-V3.2 at its true width: a dense layer and a few MoE layers, made of noise.

Knows nothing of what is measured on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.fp8_rows import GROUP
from model.cache import PAGE_TOKENS
from model.config import IndexerConfig, ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_random import RandomLayers
from model.fp8_step import StepInputs
from model.fp8_weights import Fp8Layer
from model.rope_config import RopeConfig


def true_width(
    *, moe_layers: int, dense_layers: int = 1, num_experts: int = 256, mtp: bool = False
) -> ModelConfig:
    """config.json of DeepSeek-V3.2 with fewer layers (and, for tests, fewer experts). mtp: one more layer."""
    groups = 8 if num_experts >= 64 else 1
    return ModelConfig(
        vocab_size=129280,
        hidden_size=7168,
        num_layers=dense_layers + moe_layers,
        num_dense_layers=dense_layers,
        intermediate_size=18432,
        moe_intermediate_size=2048,
        num_experts=num_experts,
        num_experts_per_token=8,
        num_expert_groups=groups,
        num_kept_groups=max(1, groups // 2),
        num_shared_experts=1,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        num_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        rms_norm_eps=1e-6,
        max_position_embeddings=163840,
        rope=RopeConfig.from_dict(
            {
                "rope_theta": 10000,
                "max_position_embeddings": 163840,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 40,
                    "beta_fast": 32,
                    "beta_slow": 1,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "original_max_position_embeddings": 4096,
                },
            }
        ),
        indexer=IndexerConfig(num_heads=64, head_dim=128, topk=2048),
        num_mtp_layers=int(mtp),
        bos_token_id=0,
        eos_token_ids=(1,),
        fp8_block=(GROUP, GROUP),
    )


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
