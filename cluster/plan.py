"""What a fleet begins with.

From then on its record says what there should be. Knows nothing of what becomes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.options import AttentionOptions, WeightsFrom
from cluster.autoscale import Bounds
from cluster.member import Member
from model.config import ModelConfig
from router.view import even_placement


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to begin with. Attention options are alike for all; experts are placed evenly.

    redundant_slots: of all expert actors together, beyond those for replicas_per_expert copies of each.
    standbys: processes that wait, warm, to take the place of what dies. rebalance_s: between looks at the
    balance, 0 for never. autoscale: by kind of actor, how many there may be; none: as many as ordered.
    has_seats: a process starts only on a node with a seat for its kind (cluster/hosts.py), so none may wait
    for any part. weights_from: who is asked first for experts that others hold.
    """

    directory: str
    device: str
    dtype: str
    data_host: str
    num_attention: int
    num_experts: int
    replicas_per_expert: int
    redundant_slots: int
    standbys: int
    rebalance_s: float
    autoscale: Mapping[str, Bounds]
    draft_tokens: int
    has_seats: bool
    weights_from: WeightsFrom
    attention: AttentionOptions


def first_members(plan: Plan, config: ModelConfig) -> list[Member]:
    """Those that the plan asks for."""
    experts: list[Member] = []
    if plan.num_experts:
        placement = even_placement(config.num_experts, plan.num_experts, plan.replicas_per_expert)
        experts = [
            Member(
                f"expert-{i}", frozenset((layer, expert) for layer in config.routed_layers for expert in held)
            )
            for i, held in enumerate(placement)
        ]
    return [*experts, *(Member(f"attention-{i}", None) for i in range(plan.num_attention))]
