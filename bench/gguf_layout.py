"""A V3.2 checkpoint as llama.cpp's arch deepseek32 wants it.

Keys, tensor names and layouts. Knows nothing of bytes (bench/gguf_file.py) and of who reads the file.

As llama.cpp's conversion makes it: kv_b apart in k_b (transposed, for the absorbed form) and v_b, each head
by itself; a layer's experts stacked; rotary pairs as released, interleaved in MLA and half-split in the
indexer; no Hadamard turn in the weights, since the arch turns queries and keys itself. The MTP layer and its
copies stay behind: llama.cpp is asked without drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.gguf_file import Value, gguf
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.names import Shape, required_tensors

ARCH = "deepseek32"
SIGMOID = 2  # of llama.cpp's gating functions
TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ATTENTION = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q_a.weight": "self_attn.q_a_proj.weight",
    "attn_q_a_norm.weight": "self_attn.q_a_layernorm.weight",
    "attn_q_b.weight": "self_attn.q_b_proj.weight",
    "attn_kv_a_mqa.weight": "self_attn.kv_a_proj_with_mqa.weight",
    "attn_kv_a_norm.weight": "self_attn.kv_a_layernorm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "indexer.attn_q_b.weight": "self_attn.indexer.wq_b.weight",
    "indexer.attn_k.weight": "self_attn.indexer.wk.weight",
    "indexer.k_norm.weight": "self_attn.indexer.k_norm.weight",
    "indexer.k_norm.bias": "self_attn.indexer.k_norm.bias",
    "indexer.proj.weight": "self_attn.indexer.weights_proj.weight",
}
GATE = {
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
}
PARTS = ("gate", "up", "down")

Read = Callable[[str], Tensor]


class GgufError(ValueError):
    """This checkpoint has no GGUF; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One tensor of the file. make: its values, of what is read."""

    name: str
    shape: Shape
    make: Callable[[Read], Tensor]

    def dtype(self, weights: torch.dtype) -> torch.dtype:
        """Vectors and what decides (the gate, the indexer's head weights) are fp32, as llama.cpp has them."""
        decides = self.name.endswith(("ffn_gate_inp.weight", "indexer.proj.weight"))
        return torch.float32 if len(self.shape) == 1 or decides else weights


def write_gguf(checkpoint: Checkpoint, path: Path, weights: torch.dtype) -> None:
    """The whole main model, matrices in `weights`. Raises GgufError or CheckpointError."""
    checkpoint.check(required_tensors(checkpoint.config))
    reader = checkpoint.reader()
    placed = list(layout(checkpoint.config))
    entries = [(one.name, one.shape, one.dtype(weights)) for one in placed]
    with gguf(path, metadata(checkpoint.config), entries) as file:
        for one, (name, _, dtype) in zip(placed, entries, strict=True):
            file.write(name, one.make(lambda source: reader.read(source, torch.float32)).to(dtype))


def metadata(config: ModelConfig) -> dict[str, Value]:
    """By key. The vocabulary is none: tokens are given as ids."""
    indexer, rope = config.indexer, config.rope
    if indexer is None or config.q_lora_rank is None:
        raise GgufError(f"model_type is {config.model_type}: only deepseek_v32 has llama.cpp's {ARCH}")
    values: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "leading_dense_block_count": config.num_dense_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": 1,  # absorbed: all heads share the latent
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.latent_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "attention.indexer.head_count": indexer.num_heads,
        "attention.indexer.key_length": indexer.head_dim,
        "attention.indexer.top_k": indexer.topk,
        "expert_count": config.num_experts,
        "expert_used_count": config.num_experts_per_token,
        "expert_shared_count": config.num_shared_experts,
        "expert_group_count": config.num_expert_groups,
        "expert_group_used_count": config.num_kept_groups,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": SIGMOID,
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.freq_base": rope.theta,
    }
    if rope.is_yarn:
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": rope.factor,
            "rope.scaling.original_context_length": rope.original_max_position_embeddings,
            "rope.scaling.yarn_beta_fast": rope.beta_fast,
            "rope.scaling.yarn_beta_slow": rope.beta_slow,
            "rope.scaling.yarn_log_multiplier": 0.1 * rope.mscale_all_dim,
        }
    named: dict[str, Value] = {f"{ARCH}.{key}": value for key, value in values.items()}
    return {"general.architecture": ARCH, **named, "tokenizer.ggml.model": "none"}


def layout(config: ModelConfig) -> Iterator[Placed]:
    """Every tensor of the file, in its order."""
    shapes = required_tensors(config)
    yield from _as_they_are(shapes, TOP, "", "")
    for layer in range(config.num_layers):
        block, prefix = f"blk.{layer}.", f"model.layers.{layer}."
        yield from _as_they_are(shapes, ATTENTION, block, prefix)
        yield from _latent_halves(config, block, prefix)
        if config.is_dense(layer):
            dense = {f"ffn_{part}.weight": f"mlp.{part}_proj.weight" for part in PARTS}
            yield from _as_they_are(shapes, dense, block, prefix)
            continue
        shared = {f"ffn_{part}_shexp.weight": f"mlp.shared_experts.{part}_proj.weight" for part in PARTS}
        yield from _as_they_are(shapes, GATE | shared, block, prefix)
        for part in PARTS:
            sources = [
                f"{prefix}mlp.experts.{expert}.{part}_proj.weight" for expert in range(config.num_experts)
            ]
            yield _stacked(f"{block}ffn_{part}_exps.weight", shapes[sources[0]], sources)


def _as_they_are(
    shapes: Mapping[str, Shape], names: Mapping[str, str], block: str, prefix: str
) -> Iterator[Placed]:
    for name, source in names.items():
        yield Placed(name=block + name, shape=shapes[prefix + source], make=_reading(prefix + source))


def _reading(source: str) -> Callable[[Read], Tensor]:
    return lambda read: read(source)


def _stacked(name: str, shape: Shape, sources: list[str]) -> Placed:
    def make(read: Read) -> Tensor:
        return torch.stack([read(source) for source in sources])

    return Placed(name=name, shape=(len(sources), *shape), make=make)


def _latent_halves(config: ModelConfig, block: str, prefix: str) -> Iterator[Placed]:
    """Of kv_b: keys [heads, latent, nope], values [heads, value, latent]."""
    heads, latent = config.num_heads, config.kv_lora_rank
    nope, value = config.qk_nope_head_dim, config.v_head_dim

    def halves(read: Read) -> tuple[Tensor, ...]:
        both = read(f"{prefix}self_attn.kv_b_proj.weight")
        return torch.split(both.view(heads, nope + value, latent), [nope, value], dim=1)

    yield Placed(
        name=f"{block}attn_k_b.weight",
        shape=(heads, latent, nope),
        make=lambda read: halves(read)[0].transpose(1, 2),
    )
    yield Placed(
        name=f"{block}attn_v_b.weight", shape=(heads, value, latent), make=lambda read: halves(read)[1]
    )
