"""From checkpoint tensors to the weights that the layers want.

Linear weights are turned to `[inputs, outputs]`, fused where they share an input, and the rotary rows of MLA
are put in half-split order once. Reads only what it is asked for: an attention actor never touches a routed
expert. Knows nothing of files; see model/checkpoint.py.

dtype, here and below: of the products' weights. int8 (kernels/int8.py) leaves everything else in fp32, and so
the embedding, the head, and the two halves of kv_b_proj that attention is absorbed into. An fp32 weight that
loses nothing by it is kept in 16 bits (kernels/rows.py), which changes no bit of a result.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kernels.int8 import quantize_weight
from kernels.rope import interleaved_to_half
from kernels.rows import Weight, dtype_of_rows, narrowed
from model.config import ModelConfig
from model.decoder import Decoder, HeadWeights, Layer, Mtp
from model.experts import Mlp
from model.gate import Gate
from model.mla import IndexerWeights, Mla, MlaWeights


class Reader(Protocol):
    """One tensor by its checkpoint name, de-quantised and cast."""

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Raises CheckpointError that names file and tensor."""


def load_decoder(reader: Reader, config: ModelConfig, dtype: torch.dtype, context_tokens: int) -> Decoder:
    """Everything but the routed experts."""
    layers = [_load_layer(reader, config, index, dtype) for index in range(config.num_layers)]
    rows = dtype_of_rows(dtype)
    head = HeadWeights(
        embedding_VD=reader.read("model.embed_tokens.weight", rows),
        norm_D=reader.read("model.norm.weight", torch.float32),
        head_DV=narrowed(_turned(reader.read("lm_head.weight", rows))),
    )
    mtp = _load_mtp(reader, config, dtype) if config.num_mtp_layers else None
    return Decoder(config, layers, head, context_tokens, mtp)


def load_expert(reader: Reader, layer: int, expert: int, dtype: torch.dtype) -> Mlp:
    """One routed expert of one layer."""
    return _load_mlp(reader, f"model.layers.{layer}.mlp.experts.{expert}", dtype)


def _load_layer(reader: Reader, config: ModelConfig, index: int, dtype: torch.dtype) -> Layer:
    prefix = f"model.layers.{index}"
    dense = config.is_dense(index)
    return Layer(
        index=index,
        attention_norm_D=reader.read(f"{prefix}.input_layernorm.weight", torch.float32),
        mla=Mla(config, index, _load_mla(reader, config, f"{prefix}.self_attn", dtype)),
        ffn_norm_D=reader.read(f"{prefix}.post_attention_layernorm.weight", torch.float32),
        mlp=_load_mlp(reader, f"{prefix}.mlp", dtype) if dense else None,
        gate=None if dense else _load_gate(reader, config, f"{prefix}.mlp.gate"),
        shared=None if dense else _load_mlp(reader, f"{prefix}.mlp.shared_experts", dtype),
    )


def _load_mtp(reader: Reader, config: ModelConfig, dtype: torch.dtype) -> Mtp:
    prefix = f"model.layers.{config.num_layers}"
    return Mtp(
        layer=_load_layer(reader, config, config.num_layers, dtype),
        embedding_norm_D=reader.read(f"{prefix}.enorm.weight", torch.float32),
        hidden_norm_D=reader.read(f"{prefix}.hnorm.weight", torch.float32),
        join_ED=_product(reader.read(f"{prefix}.eh_proj.weight", dtype_of_rows(dtype)), dtype),
        norm_D=reader.read(f"{prefix}.shared_head.norm.weight", torch.float32),
    )


def _load_mla(reader: Reader, config: ModelConfig, prefix: str, dtype: torch.dtype) -> MlaWeights:
    heads, rotary = config.num_heads, config.qk_rope_head_dim
    half_split = interleaved_to_half(rotary)

    def read(name: str) -> Tensor:
        return reader.read(f"{prefix}.{name}.weight", dtype_of_rows(dtype))

    latent_and_key = read("kv_a_proj_with_mqa")
    latent, key_rotary = torch.split(latent_and_key, [config.kv_lora_rank, rotary])
    down = [latent, key_rotary[half_split]]
    query = read("q_b_proj" if config.q_lora_rank else "q_proj").view(heads, config.qk_head_dim, -1)
    query_nope, query_rotary = torch.split(query, [config.qk_nope_head_dim, rotary], dim=1)
    up = [torch.cat([query_nope, query_rotary[:, half_split]], 1).flatten(0, 1)]
    if config.q_lora_rank:
        down.insert(0, read("q_a_proj"))
    indexer = None
    if config.indexer:
        down += [read("indexer.wk"), read("indexer.weights_proj")]
        up.append(read("indexer.wq_b"))
        indexer = IndexerWeights(
            key_norm_weight_I=reader.read(f"{prefix}.indexer.k_norm.weight", torch.float32),
            key_norm_bias_I=reader.read(f"{prefix}.indexer.k_norm.bias", torch.float32),
        )
    both = read("kv_b_proj").view(heads, -1, config.kv_lora_rank)
    absorb, expand = torch.split(both, [config.qk_nope_head_dim, config.v_head_dim], dim=1)
    return MlaWeights(
        down_DA=_product(torch.cat(down), dtype),
        query_norm_K=reader.read(f"{prefix}.q_a_layernorm.weight", torch.float32)
        if config.q_lora_rank
        else None,
        latent_norm_C=reader.read(f"{prefix}.kv_a_layernorm.weight", torch.float32),
        up_KX=_product(torch.cat(up), dtype),
        absorb_NPC=narrowed(absorb.contiguous()),
        expand_NCV=narrowed(expand.transpose(1, 2).contiguous()),
        out_VD=_product(read("o_proj"), dtype),
        indexer=indexer,
    )


def _load_gate(reader: Reader, config: ModelConfig, prefix: str) -> Gate:
    return Gate(
        config,
        _turned(reader.read(f"{prefix}.weight", torch.float32)),
        reader.read(f"{prefix}.e_score_correction_bias", torch.float32),
    )


def _load_mlp(reader: Reader, prefix: str, dtype: torch.dtype) -> Mlp:
    gate, up, down = (
        reader.read(f"{prefix}.{name}_proj.weight", dtype_of_rows(dtype)) for name in ("gate", "up", "down")
    )
    return Mlp(gate_up_DF=_product(torch.cat([gate, up]), dtype), down_FD=_product(down, dtype))


def _product(weight: Tensor, dtype: torch.dtype) -> Weight:
    """[outputs, inputs] as stored -> as kernels/rows.py wants it."""
    return quantize_weight(weight) if dtype == torch.int8 else narrowed(_turned(weight))


def _turned(weight: Tensor) -> Tensor:
    """[outputs, inputs] as stored -> [inputs, outputs] row-major, the orientation of kernels/rows.py."""
    return weight.t().contiguous()
