"""An expert actor's GPU: slots of weights, and units that answer what has arrived.

The slots of all layers stand in one weight, so that a unit needs not know which layer it computes: parcels of
several askers, and of several layers, go through one pair of products. A unit that finds nothing ends soon.
Knows nothing of who asks.

Letters: D hidden  F expert width  E experts  S slots
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kernels.boxes import Inbox
from kernels.expert_gemm import Elsewhere, expert_down, expert_up
from kernels.fp8_rows import GROUP, Fp8Weight, empty_rows
from kernels.mailbox import answer, collect, route
from kernels.routes import TILE_SHIFT, Routes, empty_routes
from model.config import ModelConfig

NOT_HELD = -1


class Fp8Shard:
    """Room for num_slots experts of any layers; table: int32 [layers, E], the slot of each that is held."""

    def __init__(self, config: ModelConfig, num_slots: int, device: torch.device) -> None:
        if num_slots >= 1 << TILE_SHIFT:
            raise ValueError(f"{num_slots} slots on one GPU: a tile's entry has room for {1 << TILE_SHIFT}")
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self.gate_up = _empty_weight(num_slots, 2 * width, hidden, device)
        self.down = _empty_weight(num_slots, hidden, width, device)
        shape = (config.num_layers, config.num_experts)
        self.table = torch.full(shape, NOT_HELD, dtype=torch.int32, device=device)
        self._free = list(range(num_slots))
        self._slots: dict[tuple[int, int], int] = {}

    @property
    def num_slots(self) -> int:
        return len(self.gate_up.values_NK)

    def fill(self, layer: int, expert: int, gate_up: Fp8Weight, down: Fp8Weight) -> None:
        """Hold an expert; it is answered for from the next unit on."""
        slot = self._slots[layer, expert] = self._free.pop(0)
        for mine, given in ((self.gate_up, gate_up), (self.down, down)):
            mine.values_NK[slot].view(torch.uint8).copy_(given.values_NK.view(torch.uint8))
            mine.scale_NK[slot].copy_(given.scale_NK)
        self.table[layer, expert] = slot

    def drop(self, layer: int, expert: int) -> None:
        """Hold it no more."""
        self.table[layer, expert] = NOT_HELD
        self._free.append(self._slots.pop((layer, expert)))


class ServingUnit:
    """One turn of an expert actor: claim, compute, answer; for a CUDA graph, which does not keep it alive.

    most_experts: how many of a layer's experts are held here at most, which bounds the tiles of a turn.
    """

    def __init__(self, shard: Fp8Shard, inbox: Inbox, *, tile_rows: int, most_experts: int) -> None:
        self._shard, self._inbox = shard, inbox
        rows, per_row = inbox.experts.shape
        device = inbox.experts.device
        routes = empty_routes(shard.num_slots, rows, inbox.places, tile_rows, device, shared=False)
        listed = rows * per_row // tile_rows + min(shard.num_slots, most_experts * inbox.num_boxes)
        self._routes: Routes = replace(routes, tiles=routes.tiles[: min(rows * per_row, listed)].clone())
        width = shard.down.values_NK.shape[2]
        self._between = empty_rows(rows * inbox.places, width, device)
        self._out = Elsewhere(addresses=inbox.back, box_pairs=inbox.capacity * inbox.places)

    def run(self) -> None:
        collect(self._inbox, self._routes.counts)
        route(self._inbox, self._shard.table, self._routes)
        expert_up(self._inbox.rows, self._shard.gate_up, self._routes, self._between)
        expert_down(self._between, self._shard.down, self._routes, self._out)
        answer(self._inbox)


def shared_routes(rows: int, places: int, tile_rows: int, device: torch.device) -> Routes:
    """Every row to the one expert there is, as the last of its places."""
    routes = empty_routes(1, rows, 1, tile_rows, device, shared=True)
    routes.counts[0] = rows
    routes.tiles.copy_(torch.arange(len(routes.tiles), device=device) << TILE_SHIFT)
    routes.pairs_EC.copy_(torch.arange(rows, device=device) * places + places - 1)
    return replace(routes, pairs_per_row=places)


def _empty_weight(slots: int, outputs: int, inner: int, device: torch.device) -> Fp8Weight:
    return Fp8Weight(
        torch.empty(slots, outputs, inner, dtype=torch.float8_e4m3fn, device=device),
        torch.empty(slots, outputs // GROUP, inner // GROUP, device=device),
    )


def one_expert(weight: Fp8Weight, expert: int) -> Fp8Weight:
    """Of a weight of many, as a weight of its own."""
    return Fp8Weight(weight.values_NK[expert], weight.scale_NK[expert])


def last_expert(weight: Fp8Weight) -> Fp8Weight:
    """The shared expert's part of a layer's weight, [1, ...], so that the rest can be let go."""

    def own(tensor: Tensor) -> Tensor:
        return tensor[-1:].clone()

    return Fp8Weight(own(weight.values_NK), own(weight.scale_NK))
