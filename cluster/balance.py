"""What each expert actor should hold, by the load.

router/placement.py decides, a layer at a time; here are the seats. Knows nothing of how experts get there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.member import Member
from model.config import ModelConfig
from router.placement import Held, adapt, room_for
from router.view import Pair

Loads = NDArray[np.float64]  # [L, E] pairs, or any other measure
WRITES = 8  # most slots of a layer that are written to even its load


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How much there should be: copies of each expert at least, slots beyond those in all."""

    copies: int
    redundant_slots: int

    def place(self, experts: Sequence[Member], config: ModelConfig, load_LE: Loads) -> int:
        """Say anew what each of those that stay should hold; returns how many more (layer, expert) to read.

        Raises ValueError if they cannot hold it all.
        """
        staying = [member for member in experts if not member.is_leaving]
        if not staying:
            raise ValueError("somebody must hold the experts: keep at least one expert actor")
        room = room_for(config.num_experts, len(staying), self.copies, self.redundant_slots)
        wanted: list[set[Pair]] = [set() for _ in staying]
        for layer, load_E in zip(config.routed_layers, load_LE, strict=True):
            held_AE = table(staying, layer, config.num_experts)
            for actor, expert in np.argwhere(adapt(held_AE, load_E, room, WRITES)):
                wanted[actor].add((layer, int(expert)))
        num_writes = 0
        for member, pairs in zip(staying, wanted, strict=True):
            num_writes += len(pairs - (member.wanted or frozenset()))
            member.wanted = frozenset(pairs)
        for member in experts:
            if member.is_leaving:
                member.wanted = frozenset()
        return num_writes


def table(experts: Sequence[Member], layer: int, num_experts: int) -> Held:
    """[A, E]: who should hold what of one layer."""
    held_AE = np.zeros((len(experts), num_experts), dtype=bool)
    for actor, member in enumerate(experts):
        held_AE[actor, [expert for place, expert in member.wanted or () if place == layer]] = True
    return held_AE


def even_load(config: ModelConfig) -> Loads:
    """What is assumed before anything is measured."""
    return np.ones((len(config.routed_layers), config.num_experts))
