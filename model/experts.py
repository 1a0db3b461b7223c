"""Feed-forward networks: one, and a shard of many.

down(silu(gate x) * up x), gate and up fused side by side. A shard is what one expert actor holds: for every
MoE layer the same number of slots, each holding one routed expert's weights. A pure function of (weights,
rows): any replica may answer any row. Knows nothing of the gate's weights; rows come back unweighted.

Letters: R rows  D hidden  F expert width  S slots of a layer  P (row, slot) pairs
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from kernels import few_mlps
from kernels.compiled import IS_COMPILED
from kernels.few_rows import Lie, most_few
from kernels.rows import ROW_MULTIPLE, Weight, grouped_matmul_rows, lie_in_few, matmul_rows
from model.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Mlp:
    """gate_up_DF: [D, 2F], gate columns first; down_FD: [F, D]."""

    gate_up_DF: Weight
    down_FD: Weight
    lies: tuple[Lie, Lie] | None = field(init=False, repr=False, compare=False)  # for few rows

    def __post_init__(self) -> None:
        up, down = lie_in_few(self.gate_up_DF), lie_in_few(self.down_FD)
        object.__setattr__(self, "lies", None if up is None or down is None else (up, down))

    def forward(self, x_RD: Tensor) -> Tensor:
        """[R, D] in x's dtype."""
        if self.lies is not None and x_RD.shape[0] <= most_few() and x_RD.is_contiguous():
            return few_mlps.mlp(x_RD, *self.lies)
        return matmul_rows(swiglu(matmul_rows(x_RD, self.gate_up_DF)), self.down_FD)


def swiglu(gate_up_RF: Tensor) -> Tensor:
    """silu(first half) * second half; the product in fp32, cast once."""
    if IS_COMPILED and gate_up_RF.is_cpu and gate_up_RF.dtype == torch.float32 and gate_up_RF.is_contiguous():
        return few_mlps.swiglu(gate_up_RF)
    gate, up = gate_up_RF.chunk(2, dim=-1)
    return (functional.silu(gate.float()) * up.float()).to(gate_up_RF.dtype)


class ExpertShard:
    """Slots of routed experts for every MoE layer; zero until filled. dtype: of the rows."""

    def __init__(self, config: ModelConfig, num_slots: int, dtype: torch.dtype) -> None:
        width, hidden = config.moe_intermediate_size, config.hidden_size
        self.num_slots = num_slots
        self.dtype = dtype
        self._first_layer = config.num_dense_layers
        self._empty = Mlp(
            gate_up_DF=torch.zeros(hidden, 2 * width, dtype=dtype),
            down_FD=torch.zeros(width, hidden, dtype=dtype),
        )
        self._slots = [[self._empty] * num_slots for _ in config.routed_layers]
        self._lie_SX = [np.zeros((num_slots, 8), dtype=np.int64) for _ in config.routed_layers]
        for layer in config.routed_layers:
            for slot in range(num_slots):
                self.clear(layer, slot)

    def fill(self, layer: int, slot: int, expert: Mlp) -> None:
        """Take an expert's weights into a slot; the slot must not be in any live view."""
        place = layer - self._first_layer
        self._lie_SX[place][slot] = 0 if expert.lies is None else np.concatenate(expert.lies)
        self._slots[place][slot] = expert

    def expert(self, layer: int, slot: int) -> Mlp:
        """What it was filled with."""
        return self._slots[layer - self._first_layer][slot]

    def clear(self, layer: int, slot: int) -> None:
        """Give a slot's weights up."""
        self.fill(layer, slot, self._empty)

    def forward(
        self, layer: int, x_RD: Tensor, row_P: NDArray[np.int32], slot_P: NDArray[np.int32]
    ) -> Tensor:
        """Pair p is row row_P[p] through slot slot_P[p].

        Returns [P, D] in x's dtype, in the order of the pairs.
        """
        order_P = np.argsort(slot_P, kind="stable")
        count_S = np.bincount(slot_P, minlength=self.num_slots)
        used_G, slots = np.flatnonzero(count_S), self._slots[layer - self._first_layer]
        used = [slots[slot] for slot in used_G.tolist()]  # kept to the end: another thread may fill a slot
        lie_GX = self._lie_SX[layer - self._first_layer][used_G]
        if count_S.max() <= most_few() and x_RD.stride(1) == 1 and lie_GX.all():
            end_G = np.concatenate([[0], np.cumsum(count_S[used_G])])
            return few_mlps.experts(x_RD, row_P, order_P, end_G, lie_GX)
        count_G = count_S[used_G]
        rows_G = -(-count_G // ROW_MULTIPLE) * ROW_MULTIPLE
        place_P = np.empty(len(slot_P), dtype=np.int64)
        place_P[order_P] = np.arange(len(slot_P)) + np.repeat(
            np.cumsum(rows_G - count_G) - (rows_G - count_G), count_G
        )
        source = np.zeros(int(rows_G.sum()), dtype=np.int64)  # padding repeats row 0; nobody reads its result
        source[place_P] = row_P
        gathered = x_RD.index_select(0, torch.from_numpy(source))
        rows = rows_G.tolist()
        hidden = swiglu(grouped_matmul_rows(gathered, [mlp.gate_up_DF for mlp in used], rows))
        out = grouped_matmul_rows(hidden, [mlp.down_FD for mlp in used], rows)
        return out.index_select(0, torch.from_numpy(place_P))

    def forward_reference(
        self, layer: int, x_RD: Tensor, row_P: NDArray[np.int32], slot_P: NDArray[np.int32]
    ) -> Tensor:
        """The same, one pair at a time."""
        out = []
        for row, slot in zip(row_P.tolist(), slot_P.tolist(), strict=True):
            expert = self._slots[layer - self._first_layer][slot]
            out.append(expert.forward(x_RD[row].expand(ROW_MULTIPLE, -1))[:1])
        return torch.cat(out)
