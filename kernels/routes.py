"""Which rows go to which expert, as lists that stay on the device.

The gate's kernel fills them with counters, the grouped products read them; the host never waits for either.
An expert's rows are taken in tiles, and each tile stands in a list, so that one expert with many rows becomes
many programs. Which place a row gets in its expert's list is a race that changes no bit: every result is
stored by its pair. Knows nothing of weights.

Letters: E experts  P pairs of the step (row * pairs_per_row + place among the row's experts)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

TILE_SHIFT = 16  # an entry of the list: tile number << TILE_SHIFT | expert


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """Room for `capacity` rows.

    counts: int32 [E + 1], the rows of each expert and last the number of tiles that the gate listed; zero
    before the gate. tiles: int32, first the tiles of the shared expert, which takes every row and is the last
    expert, then those listed. pairs_EC: int32 [E, capacity], each expert's pairs first. tile_rows: rows of a
    tile. shared_tiles: 0 where there is no shared expert. done: int32, for each tile how far the kernel of
    kernels/expert_mlp.py is; zero but while it runs.
    """

    counts: Tensor
    done: Tensor
    tiles: Tensor
    pairs_EC: Tensor
    pairs_per_row: int
    tile_rows: int
    shared_tiles: int

    @property
    def num_experts(self) -> int:
        return self.pairs_EC.shape[0]

    @property
    def capacity(self) -> int:
        return self.pairs_EC.shape[1]

    @property
    def max_tiles(self) -> int:
        return len(self.tiles)

    def first(self, rows: int) -> Routes:
        """The same memory for fewer rows."""
        is_shared = self.shared_tiles > 0
        shared, listed = _most_tiles(
            rows, self.pairs_per_row - is_shared, self.num_experts - is_shared, self.tile_rows
        )
        shared = shared if is_shared else 0
        return replace(self, tiles=self.tiles[: shared + listed], shared_tiles=shared)


def empty_routes(
    num_experts: int, rows: int, pairs_per_row: int, tile_rows: int, device: torch.device, *, shared: bool
) -> Routes:
    """No row routed yet. num_experts counts the shared one, pairs_per_row its pair."""
    shared_tiles, listed = _most_tiles(rows, pairs_per_row - shared, num_experts - shared, tile_rows)
    shared_tiles = shared_tiles if shared else 0
    return Routes(
        counts=torch.zeros(num_experts + 1, dtype=torch.int32, device=device),
        done=torch.zeros(shared_tiles + listed, dtype=torch.int32, device=device),
        tiles=torch.zeros(shared_tiles + listed, dtype=torch.int32, device=device),
        pairs_EC=torch.zeros(num_experts, rows, dtype=torch.int32, device=device),
        pairs_per_row=pairs_per_row,
        tile_rows=tile_rows,
        shared_tiles=shared_tiles,
    )


def _most_tiles(rows: int, per_row: int, num_experts: int, tile_rows: int) -> tuple[int, int]:
    """Of an expert that takes every row; of the others: full ones, and for each at most one that is not."""
    return -(-rows // tile_rows), min(rows * per_row, rows * per_row // tile_rows + num_experts)


def routes_of(experts_RK: Tensor, num_experts: int, tile_rows: int, *, shared: bool = False) -> Routes:
    """What the gate's kernel leaves behind for these experts; -1: this place of the row goes nowhere.

    shared: the last expert is the shared one, to which the last place of every row goes.
    """
    rows, places = experts_RK.shape
    routes = empty_routes(num_experts, rows, places, tile_rows, experts_RK.device, shared=shared)
    flat = experts_RK.reshape(-1)
    tiles: list[int] = []
    for expert in reversed(range(num_experts)):
        pairs = torch.nonzero(flat == expert)[:, 0]
        routes.counts[expert] = len(pairs)
        routes.pairs_EC[expert, : len(pairs)] = pairs.int()
        tiles += [tile << TILE_SHIFT | expert for tile in range(-(-len(pairs) // tile_rows))]
    routes.counts[num_experts] = len(tiles) - routes.shared_tiles
    routes.tiles[: len(tiles)] = torch.tensor(tiles, dtype=torch.int32)
    return routes
