"""The layers of a model in FP8 as released, fused for the kernels.

Projections that read the same rows stand in one weight, one under the other, each padded to whole blocks of
128 outputs. Knows nothing of files: model/fp8_random.py makes these from noise, a loader fills them.

Letters: D hidden  E experts  F expert width  H index heads  N heads  V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.fp8_rows import GROUP, Fp8Weight
from kernels.latent_shape import LatentNorms, LatentShape
from model.config import ModelConfig
from model.fields import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Attention:
    """down: rows [q_a | kv_a latent | rotary key | padding | index key]; up: rows [q_b | index q_b].

    head_weights_HD: bf16, as released. kv_b, out: as released. Rotary rows are half-split.
    """

    down: Fp8Weight
    head_weights_HD: Tensor
    norms: LatentNorms
    up: Fp8Weight
    kv_b: Fp8Weight
    out: Fp8Weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Dense:
    """gate_up: rows [gate | up]."""

    gate_up: Fp8Weight
    down: Fp8Weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Moe:
    """gate_ED: bf16. gate_up [E + 1, 2F, D], down [E + 1, D, F]: the shared expert is the last."""

    gate_ED: Tensor
    bias_E: Tensor
    gate_up: Fp8Weight
    down: Fp8Weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Layer:
    """Norm weights are fp32 [D]."""

    attention_norm_D: Tensor
    attention: Fp8Attention
    ffn_norm_D: Tensor
    ffn: Fp8Dense | Fp8Moe


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Mtp:
    """As model/decoder.py's Mtp. join_DE: bf16 [D, 2D], over [embedding | hidden], as released."""

    layer: Fp8Layer
    embedding_norm_D: Tensor
    hidden_norm_D: Tensor
    join_DE: Tensor
    norm_D: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Model:
    """All of a model on one GPU. embedding_VD and head_VD: bf16, as released. mtp: None if nobody drafts."""

    layers: list[Fp8Layer]
    embedding_VD: Tensor
    last_norm_D: Tensor
    head_VD: Tensor
    mtp: Fp8Mtp | None


def latent_shape(config: ModelConfig) -> LatentShape:
    """Where what lies in the rows of `down`. Raises ConfigError for a model that the kernels cannot take."""
    if config.indexer is None or config.q_lora_rank is None:
        raise ConfigError(f"model_type is {config.model_type}: the FP8 kernels serve deepseek_v32")
    odd = {
        "kv_lora_rank": (config.kv_lora_rank, 512),
        "qk_nope_head_dim": (config.qk_nope_head_dim, GROUP),
        "v_head_dim": (config.v_head_dim, GROUP),
        "qk_rope_head_dim": (config.qk_rope_head_dim, 64),
        "index_head_dim": (config.indexer.head_dim, GROUP),
        "index_n_heads": (config.indexer.num_heads, 64),
        "index_topk": (config.indexer.topk, 2048),
        "n_shared_experts": (config.num_shared_experts, 1),
    }
    for name, (found, wanted) in odd.items():
        if found != wanted:
            raise ConfigError(f"{name} is {found}: the FP8 kernels are written for {wanted}")
    for name, width in {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "moe_intermediate_size": config.moe_intermediate_size,
        "q_lora_rank": config.q_lora_rank,
        f"num_attention_heads x {config.qk_head_dim}": config.num_heads * config.qk_head_dim,
    }.items():
        if width % GROUP:
            raise ConfigError(f"{name} is {width}: the FP8 kernels take multiples of {GROUP}")
    rotary_end = config.q_lora_rank + config.latent_dim
    return LatentShape(
        query=config.q_lora_rank,
        latent=config.kv_lora_rank,
        rotary=config.qk_rope_head_dim,
        index=config.indexer.head_dim,
        index_at=-(-rotary_end // GROUP) * GROUP,
    )
