"""What a controller writes down for its next life.

The goals that nobody else knows, and the numbers that may never be used twice. What the living know is asked
of them instead. Knows nothing of where it is kept.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from operator import index

import msgpack

from router.view import Pair


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """An actor that there should be, or that is to leave. wanted: the experts that it should hold."""

    actor_id: str
    is_leaving: bool = False
    wanted: frozenset[Pair] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """num_lives: how many were begun, by any controller. epoch: of the newest view.

    renew_upto: lives of this number and below are to be replaced. seats: none were ever filled if empty.
    """

    num_lives: int = 0
    epoch: int = 0
    renew_upto: int = 0
    seats: tuple[Seat, ...] = ()

    def to_bytes(self) -> bytes:
        seats = [
            [seat.actor_id, seat.is_leaving, None if seat.wanted is None else _by_layer(seat.wanted)]
            for seat in self.seats
        ]
        packed: bytes = msgpack.packb([self.num_lives, self.epoch, self.renew_upto, seats])
        return packed

    @staticmethod
    def from_bytes(data: bytes) -> Record:
        """The inverse of to_bytes; raises ValueError on anything else."""
        try:
            num_lives, epoch, renew_upto, seats = msgpack.unpackb(data, strict_map_key=False)
            return Record(
                num_lives=index(num_lives),
                epoch=index(epoch),
                renew_upto=index(renew_upto),
                seats=tuple(
                    Seat(actor_id=str(name), is_leaving=bool(leaves), wanted=_pairs(layers))
                    for name, leaves, layers in seats
                ),
            )
        except (TypeError, ValueError, AttributeError, msgpack.exceptions.UnpackException) as error:
            raise ValueError(f"not a controller's record: {error}") from None


def _by_layer(pairs: frozenset[Pair]) -> dict[int, list[int]]:
    layers: defaultdict[int, list[int]] = defaultdict(list)
    for layer, expert in sorted(pairs):
        layers[layer].append(expert)
    return dict(layers)


def _pairs(layers: dict[int, list[int]] | None) -> frozenset[Pair] | None:
    if layers is None:
        return None
    return frozenset((index(layer), index(expert)) for layer, experts in layers.items() for expert in experts)
