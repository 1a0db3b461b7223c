"""A decode step whose routed experts are on other GPUs.

Rows leave after the gate, the shared expert hides a part of their way, and their answers are added from the
lanes of an outbox. Knows nothing of who answers, nor of what becomes of a step whose answers are missing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from torch import Tensor

from kernels.boxes import Outbox
from kernels.expert_gemm import expert_down, expert_up, tile_rows_for
from kernels.fp8_rows import Fp8Rows
from kernels.residual_norm import Weighted
from model.config import ModelConfig
from model.fp8_shard import shared_routes
from model.fp8_step import DecodeStep, StepInputs
from model.fp8_walk import WalkTables
from model.fp8_weights import Fp8Moe


class Away(Protocol):
    """The experts of other GPUs: rows out, and back into the outbox."""

    outbox: Outbox

    def post(self, rows: Fp8Rows, experts_RK: Tensor, layer: int) -> None:
        """Send without waiting."""

    def wait(self) -> None:
        """Until what was posted has been answered, or those who owe it are lost."""


class AwayStep(DecodeStep):
    """The layers' Fp8Moe hold the shared expert alone."""

    def __init__(
        self, config: ModelConfig, inputs: StepInputs, tables: WalkTables, away: Away, *, exact: bool = True
    ) -> None:
        super().__init__(config, inputs, tables, exact=exact)
        rows, places = len(inputs.hidden_RD), config.num_experts_per_token + 1
        own_PD = away.outbox.answers[: len(away.outbox.lanes) * places]
        self._away, self._room = away, replace(self._room, pairs_PD=own_PD)
        tile_rows = tile_rows_for(rows * config.num_experts_per_token / config.num_experts)
        self._shared = shared_routes(rows, places, tile_rows, tables.device)

    def _moe(self, index: int, weights: Fp8Moe) -> Weighted:
        room, away, outbox = self._room, self._away, self._away.outbox
        self._route(index, weights)
        away.post(room.normed, room.experts_LRK[index], index)
        expert_up(room.normed, weights.gate_up, self._shared, room.between)
        expert_down(room.between, weights.down, self._shared, room.pairs_PD)
        away.wait()
        return Weighted(
            pairs_PD=outbox.answers,
            weights_RK=room.weights_RK,
            places=self._shared.pairs_per_row,
            lanes_RP=outbox.lanes,
            lane_pairs=outbox.lanes.numel(),
        )
