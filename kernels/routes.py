"""Which rows go to which expert, as lists that stay on the device.

The gate's kernel fills them with counters, the grouped products read them; the host never waits for either.
Which place in an expert's list a row gets is a race that changes no bit: every result is stored by its pair.
Knows nothing of weights.

Letters: E experts  P pairs of the step (row * PAIRS + place among the row's experts)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """Room for `capacity` rows.

    counts: int32 [E + 1], the rows of each expert and last the number of experts that have any; zero before
    the gate. active_E: int32, those experts first. pairs_EC: int32 [E, capacity], each expert's pairs first.
    pairs_per_row: a pair is row * pairs_per_row + place.
    """

    counts: Tensor
    active_E: Tensor
    pairs_EC: Tensor
    pairs_per_row: int

    @property
    def num_experts(self) -> int:
        return self.pairs_EC.shape[0]

    @property
    def capacity(self) -> int:
        return self.pairs_EC.shape[1]


def empty_routes(num_experts: int, capacity: int, pairs_per_row: int, device: torch.device) -> Routes:
    """No row routed yet."""
    return Routes(
        counts=torch.zeros(num_experts + 1, dtype=torch.int32, device=device),
        active_E=torch.zeros(num_experts, dtype=torch.int32, device=device),
        pairs_EC=torch.zeros(num_experts, capacity, dtype=torch.int32, device=device),
        pairs_per_row=pairs_per_row,
    )


def routes_of(experts_RK: Tensor, num_experts: int, capacity: int) -> Routes:
    """What the gate's kernel leaves behind for these experts; -1: this place of the row goes nowhere."""
    routes = empty_routes(num_experts, capacity, experts_RK.shape[1], experts_RK.device)
    flat = experts_RK.reshape(-1)
    used = 0
    for expert in range(num_experts):
        pairs = torch.nonzero(flat == expert)[:, 0]
        if len(pairs):
            routes.counts[expert] = len(pairs)
            routes.pairs_EC[expert, : len(pairs)] = pairs.int()
            routes.active_E[used] = expert
            used += 1
    routes.counts[num_experts] = used
    return routes
