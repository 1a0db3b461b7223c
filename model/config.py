"""The shape of a model: config.json as frozen numbers.

Knows nothing of tensors. Accepts both families: `deepseek_v32` (with indexer) and `deepseek_v3` (without).

Errors: ConfigError (model/fields.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.fields import ConfigError, Fields, shown
from model.rope_config import RopeConfig

MAX_CONFIG_BYTES = 16 << 20
MAX_LAYERS = 4096
MAX_EXPERTS_OF_ALL_LAYERS = 1 << 20  # Kimi-K2 has 23,000; a name is made for each of them

# What the arithmetic of DeepSeek-V3 fixes: a key that is present must say this.
FIXED: Mapping[str, object] = {
    "attention_bias": False,
    "hidden_act": "silu",
    "indexer_rope_interleave": False,
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexerConfig:
    """The lightning indexer of DeepSeek sparse attention."""

    num_heads: int
    head_dim: int
    topk: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One checkpoint's dimensions; names follow config.json where there is a choice."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_dense_layers: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    num_experts_per_token: int
    num_expert_groups: int
    num_kept_groups: int
    num_shared_experts: int
    routed_scaling_factor: float
    norm_topk_prob: bool
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    indexer: IndexerConfig | None
    num_mtp_layers: int
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    fp8_block: tuple[int, int] | None
    model_type: str = "deepseek_v32"

    def __post_init__(self) -> None:
        self._check_experts()
        if self.qk_rope_head_dim % 2:
            raise ConfigError(f"qk_rope_head_dim is {self.qk_rope_head_dim}: must be even")
        if not 0 <= self.num_dense_layers <= self.num_layers:
            raise ConfigError(
                f"first_k_dense_replace is {self.num_dense_layers}: must be 0 to {self.num_layers} layers"
            )
        if self.rms_norm_eps <= 0:
            raise ConfigError(f"rms_norm_eps is {self.rms_norm_eps}: must be positive")
        if self.indexer is None:
            return
        if self.indexer.head_dim < self.qk_rope_head_dim:
            raise ConfigError(
                f"index_head_dim is {self.indexer.head_dim}: must hold {self.qk_rope_head_dim} rotary dims"
            )
        if self.q_lora_rank is None:
            raise ConfigError("q_lora_rank is null: the indexer reads the low-rank query of deepseek_v32")

    def _check_experts(self) -> None:
        if self.num_experts % self.num_expert_groups:
            raise ConfigError(
                f"n_routed_experts is {self.num_experts}: must divide into n_group {self.num_expert_groups}"
            )
        if self.num_experts < 2 * self.num_expert_groups:
            raise ConfigError(
                f"n_routed_experts is {self.num_experts}: a group's score needs two experts in each of "
                f"n_group {self.num_expert_groups}"
            )
        if not 1 <= self.num_kept_groups <= self.num_expert_groups:
            raise ConfigError(
                f"topk_group is {self.num_kept_groups}: must be 1 to n_group {self.num_expert_groups}"
            )
        reachable = self.num_kept_groups * (self.num_experts // self.num_expert_groups)
        if not 1 <= self.num_experts_per_token <= reachable:
            raise ConfigError(
                f"num_experts_per_tok is {self.num_experts_per_token}: the kept groups hold {reachable}"
            )
        total = self.num_layers * self.num_experts
        if total > MAX_EXPERTS_OF_ALL_LAYERS:
            raise ConfigError(
                f"n_routed_experts is {self.num_experts}: {self.num_layers} layers would hold {total}, "
                f"over the limit {MAX_EXPERTS_OF_ALL_LAYERS}"
            )

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Values cached per token and layer by MLA: latent plus one shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        return self.num_layers - self.num_dense_layers

    @property
    def routed_layers(self) -> range:
        """Every layer with routed experts; MTP layers are numbered after the main ones."""
        return range(self.num_dense_layers, self.num_layers + self.num_mtp_layers)

    @property
    def softmax_scale(self) -> float:
        return float(self.qk_head_dim**-0.5 * self.rope.softmax_factor)

    def is_dense(self, layer: int) -> bool:
        return layer < self.num_dense_layers

    @staticmethod
    def from_file(path: Path) -> ModelConfig:
        """Read config.json; raises ConfigError that names the file."""
        try:
            with path.open("rb") as file:
                text = file.read(MAX_CONFIG_BYTES + 1)
            if len(text) > MAX_CONFIG_BYTES:
                raise ConfigError(f"{path} is over {MAX_CONFIG_BYTES} bytes: not a config.json")
            raw = json.loads(text)
        except FileNotFoundError:
            raise ConfigError(f"{path} is missing: a checkpoint directory holds config.json") from None
        except ConfigError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as JSON: {error}") from None
        if not isinstance(raw, dict):
            raise ConfigError(f"{path} holds a {type(raw).__name__}: expected an object")
        try:
            return ModelConfig.from_dict(raw)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> ModelConfig:
        """Build from a parsed config.json; raises ConfigError that names the field."""
        field = Fields(raw)
        model_type = field.text("model_type")
        if model_type not in ("deepseek_v32", "deepseek_v3"):
            raise ConfigError(
                f"model_type is {shown(model_type)}: this build serves 'deepseek_v32' and 'deepseek_v3'"
            )
        if raw.get("auto_map"):
            raise ConfigError("auto_map is set: code inside checkpoints is never run; remove the key")
        for name, fixed in FIXED.items():
            if raw.get(name) is not None and raw[name] != fixed:
                raise ConfigError(f"{name} is {shown(raw[name])}: this build computes {fixed!r} only")
        indexer = None
        if model_type == "deepseek_v32":
            indexer = IndexerConfig(
                num_heads=field.count("index_n_heads"),
                head_dim=field.count("index_head_dim"),
                topk=field.count("index_topk"),
            )
        vocab_size = field.count("vocab_size")
        num_layers = field.count("num_hidden_layers", high=MAX_LAYERS)
        num_dense_layers = field.count("first_k_dense_replace", low=0, high=MAX_LAYERS)
        kinds = ["dense"] * num_dense_layers + ["sparse"] * (num_layers - num_dense_layers)
        if raw.get("mlp_layer_types") not in (None, kinds):
            raise ConfigError(f"mlp_layer_types contradicts first_k_dense_replace {num_dense_layers}")
        return ModelConfig(
            model_type=model_type,
            vocab_size=vocab_size,
            hidden_size=field.count("hidden_size"),
            num_layers=num_layers,
            num_dense_layers=num_dense_layers,
            intermediate_size=field.count("intermediate_size"),
            moe_intermediate_size=field.count("moe_intermediate_size"),
            num_experts=field.count("n_routed_experts"),
            num_experts_per_token=field.count("num_experts_per_tok"),
            num_expert_groups=field.count("n_group"),
            num_kept_groups=field.count("topk_group"),
            num_shared_experts=field.count("n_shared_experts"),
            routed_scaling_factor=field.number("routed_scaling_factor"),
            norm_topk_prob=field.flag("norm_topk_prob", default=True),
            num_heads=field.count("num_attention_heads"),
            q_lora_rank=None if raw.get("q_lora_rank") is None else field.count("q_lora_rank"),
            kv_lora_rank=field.count("kv_lora_rank"),
            qk_nope_head_dim=field.count("qk_nope_head_dim"),
            qk_rope_head_dim=field.count("qk_rope_head_dim"),
            v_head_dim=field.count("v_head_dim"),
            rms_norm_eps=field.number("rms_norm_eps", default=1e-6),
            max_position_embeddings=field.count("max_position_embeddings"),
            rope=RopeConfig.from_dict(raw),
            indexer=indexer,
            num_mtp_layers=field.count(_mtp_key(raw), low=0, high=MAX_LAYERS, default=0),
            bos_token_id=field.count("bos_token_id", low=0, high=vocab_size - 1, default=0),
            eos_token_ids=_eos(raw.get("eos_token_id"), vocab_size),
            fp8_block=_fp8_block(raw.get("quantization_config")),
        )


def _mtp_key(raw: Mapping[str, Any]) -> str:
    """transformers 5 renamed the key for deepseek_v3."""
    return "num_nextn_predict_layers" if "num_nextn_predict_layers" in raw else "num_mtp_layers"


def _eos(raw: Any, vocab_size: int) -> tuple[int, ...]:
    ids = raw if isinstance(raw, list) else [1 if raw is None else raw]
    if not ids or len(ids) > 64:
        raise ConfigError(f"eos_token_id lists {len(ids)} ids: expected 1 to 64")
    for one in ids:
        if type(one) is not int or not 0 <= one < vocab_size:
            raise ConfigError(f"eos_token_id is {shown(one)}: must be an integer from 0 to {vocab_size - 1}")
    return tuple(ids)


def _fp8_block(raw: Any) -> tuple[int, int] | None:
    if raw is None:
        return None
    if not isinstance(raw, Mapping) or raw.get("quant_method") != "fp8":
        raise ConfigError(f"quantization_config is {shown(raw)}: this build reads quant_method 'fp8'")
    block = raw.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(type(b) is int and b > 0 for b in block)):
        raise ConfigError(f"weight_block_size is {shown(block)}: expected two positive integers")
    return (block[0], block[1])
