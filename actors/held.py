"""The experts that are held, and the slots they lie in.

Slots are filled from any thread, emptied on the one that computes. Knows nothing of where weights come from,
nor of who asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from actors.metrics import Sample
from kernels.rows import dtype_of_rows
from model.config import ModelConfig
from model.expert_form import num_bytes
from model.experts import ExpertShard, Mlp
from router.assign import Ints
from router.view import Pair

FILES, PEERS = "files", "peers"  # where they come from


class HeldExperts:
    """A shard with a slot for every expert, and the table that says which of them are filled.

    digests: of each as it came (model/expert_form.py), dropped ones too. taken, bytes_taken: by origin.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.config, self.dtype = config, dtype
        self.shard = ExpertShard(config, config.num_experts, dtype_of_rows(dtype))
        shape = (config.routed_layers.stop, config.num_experts)
        self._held_LE: NDArray[np.bool_] = np.zeros(shape, dtype=bool)
        self.digests: dict[Pair, int] = {}
        self.taken: Counter[str] = Counter()
        self.bytes_taken: Counter[str] = Counter()

    @property
    def pairs(self) -> frozenset[Pair]:
        """Every (layer, expert) that is held."""
        return frozenset((int(layer), int(expert)) for layer, expert in np.argwhere(self._held_LE))

    def take(self, pair: Pair, weights: Mlp, digest: int, origin: str) -> None:
        """Hold an expert that has just come; any thread may, while others are computed."""
        self.digests[pair] = digest
        self.taken[origin] += 1
        self.bytes_taken[origin] += num_bytes(weights)
        self.fill(*pair, weights)

    def fill(self, layer: int, expert: int, weights: Mlp) -> None:
        """Hold these weights; any thread may, while others are computed."""
        self.shard.fill(layer, expert, weights)
        self._held_LE[layer, expert] = True

    def drop(self, layer: int, expert: int) -> None:
        """Hold it no more; on the thread that computes, so never in the middle of it."""
        self._held_LE[layer, expert] = False
        self.shard.clear(layer, expert)

    def spoil(self) -> None:
        """Overwrite every weight by NaN."""
        shape = (self.config.hidden_size, self.config.moe_intermediate_size)
        nan = Mlp(
            gate_up_DF=torch.full((shape[0], 2 * shape[1]), torch.nan, dtype=self.shard.dtype),
            down_FD=torch.full(shape[::-1], torch.nan, dtype=self.shard.dtype),
        )
        for layer, expert in self.pairs:
            self.fill(layer, expert, nan)

    def weights(self, layer: int, expert: int) -> Mlp | None:
        """None of an expert that is not held, or that no model like this one has."""
        if layer not in self.config.routed_layers or not self.holds(layer, np.array([expert])):
            return None
        return self.shard.expert(layer, expert)

    def holds(self, layer: int, expert_P: Ints) -> bool:
        inside = (expert_P >= 0) & (expert_P < self._held_LE.shape[1])
        return bool(inside.all()) and bool(self._held_LE[layer, expert_P].all())

    def forward(self, layer: int, rows_RD: torch.Tensor, row_P: Ints, expert_P: Ints) -> torch.Tensor:
        """rows through the experts they name; every expert must be held."""
        return self.shard.forward(layer, rows_RD, row_P, expert_P)

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        yield Sample("shoal_experts_held", len(self.pairs) / len(self.config.routed_layers))
        for origin in (FILES, PEERS):
            yield Sample("shoal_experts_taken_total", self.taken[origin], (origin,))
            yield Sample("shoal_expert_bytes_taken_total", self.bytes_taken[origin], (origin,))


def in_every_layer(config: ModelConfig, experts: Iterable[int]) -> list[Pair]:
    """The pairs of the same experts in each MoE layer."""
    return list(product(config.routed_layers, experts))
