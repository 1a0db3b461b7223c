"""Rows through the layers on one GPU: what decode and prefill have in common.

The order of the kernels and the buffers that stand between them. How rows are multiplied, which keys they see
and how experts take them is said by model/fp8_step.py for few rows and model/fp8_prefill.py for many. Knows
nothing of sequences, embedding or head.

Letters: R rows  D hidden  N heads  X columns of a projection  E experts  K experts per row  P pairs  L layers
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.fp8_rows import Fp8Rows, Fp8Weight, empty_rows
from kernels.gate_topk import GateShape, gate_topk
from kernels.latent_write import hadamard, latent_write
from kernels.residual_norm import Weighted, residual_norm
from kernels.routes import Routes, empty_routes
from kernels.swiglu import swiglu_quantize
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_weights import Fp8Attention, Fp8Dense, Fp8Layer, Fp8Moe, latent_shape
from model.rope import inverse_frequencies

NARROW_SPLITS = 14  # of the gate's and the head weights' products: 7168 in parts of four blocks

Delta = Tensor | Weighted | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What stands between kernels, for so many rows. experts_LRK: of every layer, until the next walk."""

    normed_RD: Tensor
    normed: Fp8Rows
    query: Fp8Rows
    values: Fp8Rows
    dense: Fp8Rows
    weights_RK: Tensor
    experts_LRK: Tensor
    between: Fp8Rows
    pairs_PD: Tensor

    def first(self, rows: int) -> Room:
        """The same memory for fewer rows."""
        pairs = rows * (len(self.pairs_PD) // len(self.normed_RD))
        return Room(
            normed_RD=self.normed_RD[:rows],
            normed=_first(self.normed, rows),
            query=_first(self.query, rows),
            values=_first(self.values, rows),
            dense=_first(self.dense, rows),
            weights_RK=self.weights_RK[:rows],
            experts_LRK=self.experts_LRK[:, :rows],
            between=_first(self.between, pairs),
            pairs_PD=self.pairs_PD[:pairs],
        )


class WalkTables:
    """What walks share, whatever their rows. num_positions: of a sequence."""

    def __init__(self, config: ModelConfig, num_positions: int, device: torch.device) -> None:
        self.shape, self.device = latent_shape(config), device
        angles_TP = torch.outer(
            torch.arange(num_positions, dtype=torch.float32),
            inverse_frequencies(config.rope, config.qk_rope_head_dim),
        )
        factor = config.rope.attention_factor
        self.cos_TP = (angles_TP.cos() * factor).to(device)
        self.sin_TP = (angles_TP.sin() * factor).to(device)
        self.hadamard_II = hadamard(self.shape.index, device)
        self.beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Walk(ABC):
    """Made once for at most `rows` rows.

    All rows write their latents before any row attends, layer by layer, so rows may be of one sequence: each
    sees those before it as if they had come in an earlier step.
    """

    def __init__(self, config: ModelConfig, rows: int, tables: WalkTables, tile_rows: int) -> None:
        self._config, self._shape, device = config, tables.shape, tables.device
        self._cos, self._sin, self._hadamard = tables.cos_TP, tables.sin_TP, tables.hadamard_II
        per_row = config.num_experts_per_token
        self._gate = GateShape(
            num_experts=config.num_experts,
            per_row=per_row,
            num_groups=config.num_expert_groups,
            kept_groups=config.num_kept_groups,
            scaling=config.routed_scaling_factor,
            shared=True,
        )
        routed = config.num_experts + 1
        self._counts = torch.empty(config.num_layers, routed + 1, dtype=torch.int32, device=device)
        self._routes = empty_routes(routed, rows, per_row + 1, tile_rows, device, shared=True)
        pairs = rows * (per_row + 1)
        self._room = Room(
            normed_RD=torch.empty(rows, config.hidden_size, dtype=torch.bfloat16, device=device),
            normed=empty_rows(rows, config.hidden_size, device),
            query=empty_rows(rows, self._shape.query, device),
            values=empty_rows(rows, config.num_heads * config.v_head_dim, device),
            dense=empty_rows(rows, config.intermediate_size, device),
            weights_RK=torch.empty(rows, per_row, device=device),
            experts_LRK=torch.empty(config.num_layers, rows, per_row, dtype=torch.int32, device=device),
            between=empty_rows(pairs, config.moe_intermediate_size, device),
            pairs_PD=torch.empty(pairs, config.hidden_size, dtype=torch.bfloat16, device=device),
        )

    def chosen(self) -> Tensor:
        """int32 [L, R, K]: what the gates of the last walk chose, by the places of their layers in it."""
        return self._room.experts_LRK

    def _walk(
        self,
        hidden_RD: Tensor,
        positions_R: Tensor,
        slots_R: Tensor,
        layers: Sequence[Fp8Layer],
        cache: Fp8Cache,
        last_norm_D: Tensor,
        *,
        first_plane: int = 0,
        delta: Delta = None,
    ) -> Tensor:
        """bf16 [R, D] after the last norm; hidden_RD is the residual by then.

        first_plane: of the cache, that of the first layer. delta: what is still to be added to hidden_RD.
        """
        self._counts.zero_()
        for index, layer in enumerate(layers):
            self._norm(hidden_RD, delta, layer.attention_norm_D)
            delta = self._attend(first_plane + index, layer.attention, cache, positions_R, slots_R)
            self._norm(hidden_RD, delta, layer.ffn_norm_D)
            delta = self._dense(layer.ffn) if isinstance(layer.ffn, Fp8Dense) else self._moe(index, layer.ffn)
        self._norm(hidden_RD, delta, last_norm_D)
        return self._room.normed_RD

    def _norm(self, hidden_RD: Tensor, delta: Delta, weight_D: Tensor) -> None:
        room = self._room
        residual_norm(hidden_RD, delta, weight_D, self._config.rms_norm_eps, room.normed_RD, room.normed)

    def _attend(
        self, plane: int, weights: Fp8Attention, cache: Fp8Cache, positions_R: Tensor, slots_R: Tensor
    ) -> Tensor:
        """The parts of what attention adds to the residual."""
        room = self._room
        heads_SRH = self._narrow(weights.head_weights_HD)
        latent_write(
            self._sum(room.normed, weights.down),
            self._shape,
            weights.norms,
            self._cos,
            self._sin,
            positions_R,
            slots_R,
            self._hadamard,
            room.query,
            cache.latents[plane],
            cache.keys[plane],
        )
        self._see(plane, self._whole(room.query, weights.up), heads_SRH, weights.kv_b, cache)
        return self._sum(room.values, weights.out)

    def _dense(self, weights: Fp8Dense) -> Tensor:
        swiglu_quantize(self._whole(self._room.normed, weights.gate_up), self._room.dense)
        return self._sum(self._room.dense, weights.down)

    def _moe(self, index: int, weights: Fp8Moe) -> Weighted:
        room, routes = self._room, self._route(index, weights)
        self._experts(weights, routes)
        return Weighted(pairs_PD=room.pairs_PD, weights_RK=room.weights_RK, places=routes.pairs_per_row)

    def _route(self, index: int, weights: Fp8Moe) -> Routes:
        """Fill the room's experts and their weights; where each goes."""
        room = self._room
        routes = replace(self._routes.first(len(room.normed_RD)), counts=self._counts[index])
        scores_SRE = self._narrow(weights.gate_ED)
        gate_topk(scores_SRE, weights.bias_E, self._gate, room.weights_RK, room.experts_LRK[index], routes)
        return routes

    @abstractmethod
    def _narrow(self, weight_ND: Tensor) -> Tensor:
        """fp32 [S, R, N]: the normed rows times a bf16 weight, to be added in order."""

    @abstractmethod
    def _sum(self, x: Fp8Rows, weight: Fp8Weight) -> Tensor:
        """fp32 [S, R, N] of x times weight, to be added in order."""

    @abstractmethod
    def _see(self, plane: int, up_RX: Tensor, heads_SRH: Tensor, kv_b: Fp8Weight, cache: Fp8Cache) -> None:
        """Fill the room's values: choose keys, gather, leave the latents. plane: of the cache."""

    @abstractmethod
    def _experts(self, weights: Fp8Moe, routes: Routes) -> None:
        """Fill the room's pairs."""

    @abstractmethod
    def _whole(self, x: Fp8Rows, weight: Fp8Weight) -> Tensor:
        """bf16 [R, N] of x times weight."""


def _first(rows: Fp8Rows, count: int) -> Fp8Rows:
    return Fp8Rows(rows.values_RK[:count], rows.scale_GR[:, :count])
