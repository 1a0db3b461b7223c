"""Where each tensor of a checkpoint goes in a model on one GPU.

Room for the model is made on the device, and noted which tensor belongs where in it: a loader carries them
there, noise may fill them. Values and scales stay as released. Knows nothing of files.

Rotary rows: MLA's pairs lie interleaved in a checkpoint and half-split here; the indexer's are half-split in
both. Rows move within their scale block alone, so that moving them is exact; a shape in which some would
leave theirs is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.fp8_rows import GROUP, Fp8Weight
from kernels.latent_shape import LatentNorms
from kernels.rope import interleaved_to_half
from model.config import ModelConfig
from model.fields import ConfigError
from model.fp8_weights import Fp8Attention, Fp8Dense, Fp8Layer, Fp8Model, Fp8Moe, Fp8Mtp
from model.mla import INDEX_NORM_EPS
from model.names import Shape, attention_tensors, expert_tensors, mtp_attention_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a tensor goes. scale: of an FP8 weight. order: of its rows, None as they are."""

    name: str
    values: Tensor
    scale: Tensor | None = None
    order: Tensor | None = None


def tensors_of_model(config: ModelConfig) -> dict[str, Shape]:
    """All that is read, by name."""
    names = attention_tensors(config) | mtp_attention_tensors(config)
    for layer in config.routed_layers:
        for expert in range(config.num_experts):
            names |= expert_tensors(config, layer, expert)
    return names


class Room:
    """Makes room for weights on the device, all zero; `places` says what belongs there."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.places: list[Place] = []
        self._config, self._device = config, device
        self._shapes = tensors_of_model(config)

    def model(self) -> Fp8Model:
        config = self._config
        return Fp8Model(
            layers=[self.layer(index) for index in range(config.num_layers)],
            embedding_VD=self._wide("model.embed_tokens.weight"),
            last_norm_D=self._norm("model.norm.weight"),
            head_VD=self._wide("lm_head.weight"),
            mtp=self._mtp() if config.num_mtp_layers else None,
        )

    def layer(self, index: int) -> Fp8Layer:
        prefix = f"model.layers.{index}"
        ffn = self._dense(f"{prefix}.mlp") if self._config.is_dense(index) else self._moe(f"{prefix}.mlp")
        return Fp8Layer(
            attention_norm_D=self._norm(f"{prefix}.input_layernorm.weight"),
            attention=self._attention(f"{prefix}.self_attn"),
            ffn_norm_D=self._norm(f"{prefix}.post_attention_layernorm.weight"),
            ffn=ffn,
        )

    def _mtp(self) -> Fp8Mtp:
        prefix = f"model.layers.{self._config.num_layers}"
        return Fp8Mtp(
            layer=self.layer(self._config.num_layers),
            embedding_norm_D=self._norm(f"{prefix}.enorm.weight"),
            hidden_norm_D=self._norm(f"{prefix}.hnorm.weight"),
            join_DE=self._wide(f"{prefix}.eh_proj.weight"),
            norm_D=self._norm(f"{prefix}.shared_head.norm.weight"),
        )

    def _attention(self, prefix: str) -> Fp8Attention:
        config = self._config
        latent_rows = torch.arange(config.latent_dim)[None]
        query_rows = torch.arange(config.num_heads * config.qk_head_dim).view(config.num_heads, -1)
        return Fp8Attention(
            down=self._stacked(
                f"{prefix}.q_a_proj.weight",
                f"{prefix}.kv_a_proj_with_mqa.weight",
                f"{prefix}.indexer.wk.weight",
                orders={1: _rotary_last_half_split(latent_rows, config.qk_rope_head_dim)},
            ),
            head_weights_HD=self._wide(f"{prefix}.indexer.weights_proj.weight"),
            norms=LatentNorms(
                query_Q=self._norm(f"{prefix}.q_a_layernorm.weight"),
                latent_C=self._norm(f"{prefix}.kv_a_layernorm.weight"),
                index_weight_I=self._norm(f"{prefix}.indexer.k_norm.weight"),
                index_bias_I=self._norm(f"{prefix}.indexer.k_norm.bias"),
                eps=config.rms_norm_eps,
                index_eps=INDEX_NORM_EPS,
            ),
            up=self._stacked(
                f"{prefix}.q_b_proj.weight",
                f"{prefix}.indexer.wq_b.weight",
                orders={0: _rotary_last_half_split(query_rows, config.qk_rope_head_dim)},
            ),
            kv_b=self._stacked(f"{prefix}.kv_b_proj.weight"),
            out=self._stacked(f"{prefix}.o_proj.weight"),
        )

    def _dense(self, prefix: str) -> Fp8Dense:
        return Fp8Dense(
            gate_up=self._stacked(f"{prefix}.gate_proj.weight", f"{prefix}.up_proj.weight"),
            down=self._stacked(f"{prefix}.down_proj.weight"),
        )

    def _moe(self, prefix: str) -> Fp8Moe:
        experts = [f"{prefix}.experts.{expert}" for expert in range(self._config.num_experts)]
        experts.append(f"{prefix}.shared_experts")
        return Fp8Moe(
            gate_ED=self._wide(f"{prefix}.gate.weight"),
            bias_E=self._norm(f"{prefix}.gate.e_score_correction_bias"),
            gate_up=self._experts([[f"{one}.gate_proj.weight", f"{one}.up_proj.weight"] for one in experts]),
            down=self._experts([[f"{one}.down_proj.weight"] for one in experts]),
        )

    def _norm(self, name: str) -> Tensor:
        return self._wide(name, torch.float32)

    def _wide(self, name: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """A tensor that is not quantised, in the dtype that the kernels want."""
        values = torch.zeros(self._shapes[name], dtype=dtype, device=self._device)
        self.places.append(Place(name=name, values=values))
        return values

    def _experts(self, names_of_each: Sequence[Sequence[str]]) -> Fp8Weight:
        """Like weights one behind the other."""
        outputs, inner = self._padded(names_of_each[0])
        weight = self._empty(len(names_of_each), outputs, inner)
        for expert, names in enumerate(names_of_each):
            self._put(Fp8Weight(weight.values_NK[expert], weight.scale_NK[expert]), names, {})
        return weight

    def _stacked(self, *names: str, orders: dict[int, Tensor] | None = None) -> Fp8Weight:
        """One under the other; orders: of the rows of one, by its place among the names."""
        weight = self._empty(*self._padded(names))
        self._put(weight, names, orders or {})
        return weight

    def _put(self, weight: Fp8Weight, names: Sequence[str], orders: dict[int, Tensor]) -> None:
        block = 0
        for at, name in enumerate(names):
            rows, columns = self._shapes[name]
            order = orders.get(at)
            _check_stays_in_blocks(name, order)
            blocks = _blocks(rows)
            self.places.append(
                Place(
                    name=name,
                    values=weight.values_NK[block * GROUP : block * GROUP + rows, :columns],
                    scale=weight.scale_NK[block : block + blocks],
                    order=order,
                )
            )
            block += blocks

    def _padded(self, names: Sequence[str]) -> tuple[int, int]:
        """Outputs and inputs of these one under the other, each in whole blocks."""
        shapes = [self._shapes[name] for name in names]
        return sum(_blocks(rows) for rows, _ in shapes) * GROUP, _blocks(shapes[0][1]) * GROUP

    def _empty(self, *shape: int) -> Fp8Weight:
        scale = [*shape[:-2], shape[-2] // GROUP, shape[-1] // GROUP]
        return Fp8Weight(
            torch.zeros(shape, dtype=torch.float8_e4m3fn, device=self._device),
            torch.zeros(scale, dtype=torch.float32, device=self._device),
        )


def _rotary_last_half_split(rows_NX: Tensor, rotary: int) -> Tensor:
    """The order of rows, head by head, in which each head's last `rotary` are half-split."""
    still, turned = rows_NX[:, :-rotary], rows_NX[:, -rotary:]
    return torch.cat([still, turned[:, interleaved_to_half(rotary)]], 1).flatten()


def _check_stays_in_blocks(name: str, order: Tensor | None) -> None:
    if order is None:
        return
    strays = torch.nonzero(order // GROUP != torch.arange(len(order)) // GROUP)
    if len(strays):
        raise ConfigError(
            f"{name}: row {int(strays[0])} is rotary and would leave its scale block of {GROUP} rows; "
            "the FP8 kernels take heads whose rotary rows lie in one"
        )


def _blocks(size: int) -> int:
    return -(-size // GROUP)
