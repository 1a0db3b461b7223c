"""What two actors of one host tell each other about their memory.

An attention actor and an expert actor each give the other one lane of their own memory, over the proven
connection that they have anyway; from then on kernels write there (kernels/mailbox.py) and the host only
turns lanes on and off: router/shm_asker.py, router/shm_expert.py. On CUDA the memory is a GPU's, opened by
IPC handles; tests use plain memory. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from kernels.boxes import WORDS
from kernels.fp8_rows import GROUP
from router.transport import RouterError

ALIGNMENT = 256


class Memory(Protocol):
    """Of this process, for others to write."""

    address: int
    buffer: Tensor
    handle: bytes  # by which others open it


class Peer(Protocol):
    """Memory of another process."""

    address: int

    def close(self) -> None:
        """Unmap it."""


Allocate = Callable[[int], Memory]
OpenPeer = Callable[[bytes], Peer]


class Unfit(RouterError):  # noqa: N818
    """The peer's mailbox is for a model of another shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """slots: parcels of one asker that may be away at once. places: of a row's answers, per_row or more."""

    slots: int
    capacity: int
    width: int
    per_row: int
    places: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.slots, self.capacity, self.width, self.per_row, self.places)

    def inbox(self, lanes: int) -> tuple[list[int], int]:
        """Where values, scales, experts and heads of an expert actor's memory begin, and its size."""
        rows = lanes * self.slots * self.capacity
        return _laid_out(
            rows * self.width,
            rows * self.width // GROUP * 4,
            rows * self.per_row * 4,
            lanes * self.slots * WORDS * 8,
        )

    def outbox(self, lanes: int) -> tuple[list[int], int]:
        """Where answers and words of an asker's memory begin, and its size."""
        return _laid_out(self.slots * lanes * self.lane_bytes, self.slots * lanes * WORDS * 8)

    @property
    def lane_bytes(self) -> int:
        """Of the answers to one parcel."""
        return self.capacity * self.places * self.width * 2


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenBox:
    """An asker wants boxes, and says where answers go: its memory, its lanes and which of them this is."""

    KIND: ClassVar[str] = "open-box"
    handle: bytes
    lanes: int
    lane: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxOpened:
    """Boxes lane * slots + 0 .. slots - 1 of an expert actor's memory."""

    KIND: ClassVar[str] = "box-opened"
    handle: bytes
    lanes: int
    lane: int


class Views:
    """Tensors over parts of a buffer."""

    def __init__(self, buffer: Tensor) -> None:
        self._buffer = buffer

    def __call__(self, start: int, dtype: torch.dtype, *shape: int) -> Tensor:
        num_bytes = dtype.itemsize
        for size in shape:
            num_bytes *= size
        return self._buffer[start : start + num_bytes].view(dtype).view(shape)


def _laid_out(*sizes: int) -> tuple[list[int], int]:
    """Where parts of these sizes begin, one after the other, and where the last one ends."""
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return starts, end
