"""The view: which expert actors live, and who holds which expert.

Immutable, numbered by epoch, published by the controller and adopted by attention actors between steps. Knows
nothing of sockets or weights.

Letters: L MoE layers  E routed experts  A expert actors  R most replicas of one expert
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, NewType

import msgpack
import numpy as np
from numpy.typing import NDArray

ActorId = NewType("ActorId", str)
Epoch = NewType("Epoch", int)
Pair = tuple[int, int]  # (layer, expert)
NO_ACTOR = -1
MAX_EXPERTS = 1 << 16  # of a layer; the table is as wide as this number says


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertActor:
    """One expert actor's life: a replacement has the same id and a higher incarnation."""

    actor_id: ActorId
    incarnation: int
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class View:
    """held[a][l]: the experts that actors[a] holds in MoE layer first_layer + l.

    Raises ValueError if uneven, or if it names an expert or an actor that cannot be.
    """

    epoch: Epoch
    num_experts: int
    first_layer: int
    actors: tuple[ExpertActor, ...]
    held: tuple[tuple[tuple[int, ...], ...], ...]
    replicas: NDArray[np.int32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.held) != len(self.actors):
            raise ValueError(
                f"view {self.epoch} has {len(self.actors)} actors but {len(self.held)} placements"
            )
        if len({len(layers) for layers in self.held}) > 1:
            raise ValueError(f"view {self.epoch}: actors disagree on the number of MoE layers")
        if len({actor.actor_id for actor in self.actors}) < len(self.actors):
            raise ValueError(f"view {self.epoch} names an actor twice")
        if not 1 <= self.num_experts <= MAX_EXPERTS or self.first_layer < 0:
            raise ValueError(
                f"view {self.epoch} has {self.num_experts} experts from layer {self.first_layer} on: "
                f"must be 1 to {MAX_EXPERTS}, from 0 on"
            )
        named = {expert for layers in self.held for layer in layers for expert in layer}
        if named and not 0 <= min(named) <= max(named) < self.num_experts:
            raise ValueError(f"view {self.epoch} places an expert outside 0 to {self.num_experts - 1}")
        object.__setattr__(self, "replicas", self._replica_table())

    @property
    def num_layers(self) -> int:
        return len(self.held[0]) if self.held else 0

    def replicas_of(self, layer: int) -> NDArray[np.int32]:
        """[E, R] of one layer: indices into `actors`, ascending, NO_ACTOR after the last."""
        if not self.actors:  # then no layers either
            return np.full((self.num_experts, 1), NO_ACTOR, dtype=np.int32)
        table: NDArray[np.int32] = self.replicas[layer - self.first_layer]
        return table

    def missing(self) -> list[tuple[int, int]]:
        """(layer, expert) pairs that nobody holds."""
        gone = np.argwhere(self.replicas[:, :, 0] == NO_ACTOR)
        return [(int(layer) + self.first_layer, int(expert)) for layer, expert in gone]

    def pairs_of(self, actor: int) -> frozenset[Pair]:
        """All that actors[actor] holds."""
        layers = enumerate(self.held[actor], self.first_layer)
        return frozenset((layer, expert) for layer, experts in layers for expert in experts)

    def _replica_table(self) -> NDArray[np.int32]:
        """[L, E, R] indices into `actors`, ascending, NO_ACTOR after the last."""
        holders = np.zeros((self.num_layers, self.num_experts, max(1, len(self.actors))), dtype=bool)
        for actor, layers in enumerate(self.held):
            for layer, experts in enumerate(layers):
                holders[layer, list(experts), actor] = True
        most = max(1, int(holders.sum(-1).max(initial=0)))
        order = np.argsort(~holders, axis=-1, kind="stable")[..., :most]
        return np.where(np.take_along_axis(holders, order, -1), order, NO_ACTOR).astype(np.int32)

    def to_bytes(self) -> bytes:
        """msgpack, for the journal and the control plane."""
        actors = [[a.actor_id, a.incarnation, a.host, a.port] for a in self.actors]
        packed: bytes = msgpack.packb([self.epoch, self.num_experts, self.first_layer, actors, self.held])
        return packed

    @staticmethod
    def from_bytes(data: bytes) -> View:
        """The inverse of to_bytes; raises ValueError on anything else."""
        try:
            epoch, num_experts, first_layer, actors, held = msgpack.unpackb(data, use_list=False)
            return View(
                epoch=Epoch(index(epoch)),
                num_experts=index(num_experts),
                first_layer=index(first_layer),
                actors=tuple(
                    ExpertActor(actor_id=ActorId(str(i)), incarnation=index(n), host=str(h), port=index(p))
                    for i, n, h, p in actors
                ),
                held=tuple(tuple(tuple(index(e) for e in layer) for layer in layers) for layers in held),
            )
        except (TypeError, msgpack.exceptions.UnpackException) as error:
            raise ValueError(f"not a view: {error}") from None


def even_placement(num_experts: int, num_actors: int, replicas: int = 1) -> list[tuple[int, ...]]:
    """Experts of each actor, the same for every layer: contiguous shares, copy r shifted by r actors.

    Raises ValueError when replicas of one expert could not land on distinct actors.
    """
    if not 1 <= replicas <= num_actors:
        raise ValueError(
            f"replicas is {replicas}: must be between 1 and the number of expert actors, {num_actors}"
        )
    if num_actors > num_experts:
        raise ValueError(f"num_actors is {num_actors}: there are only {num_experts} experts to hold")
    shares = np.array_split(np.arange(num_experts), num_actors)
    placement: list[tuple[int, ...]] = []
    for actor in range(num_actors):
        own = np.concatenate([shares[(actor + copy) % num_actors] for copy in range(replicas)])
        placement.append(tuple(sorted(int(e) for e in own)))
    return placement


def make_view(
    epoch: int,
    actors: Sequence[ExpertActor],
    placement: Mapping[ActorId, Sequence[int]],
    *,
    num_experts: int,
    first_layer: int,
    num_layers: int,
) -> View:
    """A view in which every layer is placed alike; actors missing from `placement` hold nothing."""
    held: list[Any] = [(tuple(placement.get(a.actor_id, ())),) * num_layers for a in actors]
    return View(
        epoch=Epoch(epoch),
        num_experts=num_experts,
        first_layer=first_layer,
        actors=tuple(actors),
        held=tuple(held),
    )
