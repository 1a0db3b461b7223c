"""Mailboxes of one host: who may write into whose memory.

An attention actor and an expert actor each give the other one lane of their own memory, over the proven
connection that they have anyway; from then on kernels write there (kernels/mailbox.py) and the host only
turns lanes on and off. A lane is one life's (router/lanes.py). On CUDA the memory is a GPU's, opened by IPC
handles; tests use plain shared memory. Knows nothing of models.

Letters: B boxes (lane * slots + slot)  L lanes  E experts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from kernels.fp8_rows import GROUP, Fp8Rows
from kernels.mailbox import EXPERTS, HEAD, LIVE, SCALES, STRIDE, TOLD, VALUES, WORDS, Inbox, Outbox
from router.lanes import Lanes, Life
from router.transport import RouterError

ALIGNMENT = 256
PATIENCE_S = 0.1  # of an asker for an answer; its host knows of most deaths sooner
IDLE_S = 0.0002  # of an expert actor for a first parcel, then its turn ends
LINGER_S = 0.00002  # and for others after it


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


class ExpertMailbox:
    """An expert actor's inbox and who writes there. What changes it is ordered by the current stream."""

    def __init__(self, geometry: Geometry, lanes: int, allocate: Allocate, open_peer: OpenPeer) -> None:
        self._geometry, self._num_lanes, self._open_peer = geometry, lanes, open_peer
        (values, scales, experts, heads), num_bytes = geometry.inbox(lanes)
        self._memory = allocate(num_bytes)
        device = self._memory.buffer.device
        boxes = lanes * geometry.slots
        rows, groups = boxes * geometry.capacity, geometry.width // GROUP
        view = _Views(self._memory.buffer)

        def words(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.inbox = Inbox(
            rows=Fp8Rows(
                view(values, torch.float8_e4m3fn, rows, geometry.width),
                view(scales, torch.float32, groups, rows),
            ),
            experts=view(experts, torch.int32, rows, geometry.per_row),
            heads=view(heads, torch.int64, boxes, WORDS),
            served=words(boxes),
            claimed=words(boxes),
            refused=words(boxes),
            back=words(boxes, 2),
            timing=words(3),
            capacity=geometry.capacity,
            places=geometry.places,
        )
        self._lanes = Lanes(lanes)
        self._peers: dict[Life, Peer] = {}
        self.set_timing(IDLE_S, LINGER_S)

    def set_timing(self, idle_s: float, linger_s: float) -> None:
        """How long a unit waits for a first parcel, and for those of other askers after it."""
        askers = max(1, len(self._lanes.live))
        timing = [round(idle_s * 1e9), round(linger_s * 1e9), askers]
        self._timing_s = (idle_s, linger_s)
        self.inbox.timing.copy_(torch.tensor(timing))

    def open(self, asker: Life, wanted: OpenBox) -> BoxOpened:
        """Give an asker its boxes. Raises Unfit, LanesTaken, or what opening its memory raises."""
        geometry = self._geometry
        if wanted.shape != geometry.shape or not 0 < wanted.lane < wanted.lanes:
            raise Unfit(f"{asker.actor} asks for lane {wanted.lane} of {wanted.shape}: here {geometry.shape}")
        peer = self._open_peer(wanted.handle)
        lane = self._lanes.open(asker)
        self._peers[asker] = peer
        (answers, words), _ = geometry.outbox(wanted.lanes)
        back = [
            [
                peer.address + answers + place * geometry.lane_bytes,
                peer.address + words + place * WORDS * 8,
            ]
            for place in (slot * wanted.lanes + wanted.lane for slot in range(geometry.slots))
        ]
        own = slice(lane * geometry.slots, (lane + 1) * geometry.slots)
        for table in (self.inbox.heads, self.inbox.served, self.inbox.claimed, self.inbox.refused):
            table[own] = 0
        self.inbox.back[own] = torch.tensor(back, device=self.inbox.back.device)
        self.set_timing(*self._timing_s)
        return BoxOpened(handle=self._memory.handle, lanes=self._num_lanes, lane=lane)

    def lose(self, asker: Life) -> None:
        """Answer it no more."""
        lane = self._lanes.live.get(asker)
        if lane is not None:
            self._lanes.lose(asker)
            self.inbox.back[lane * self._geometry.slots : (lane + 1) * self._geometry.slots] = 0
            self.set_timing(*self._timing_s)

    def bury(self, asker: Life) -> None:
        """Its process has ended, and no unit that began before it was lost still runs."""
        self._lanes.bury(asker)
        if (peer := self._peers.pop(asker, None)) is not None:
            peer.close()


class AskerMailbox:
    """An attention actor's outbox and who answers it; lane 0 is its own."""

    def __init__(
        self,
        geometry: Geometry,
        lanes: int,
        owners_shape: tuple[int, int],
        allocate: Allocate,
        open_peer: OpenPeer,
    ) -> None:
        self._geometry, self._num_lanes, self._open_peer = geometry, lanes, open_peer
        (answers, words), num_bytes = geometry.outbox(lanes)
        self._memory = allocate(num_bytes)
        device = self._memory.buffer.device
        view = _Views(self._memory.buffer)
        slots, pairs = geometry.slots, geometry.capacity * geometry.places
        answers_SLD = view(answers, torch.bfloat16, slots, lanes * pairs, geometry.width)
        words_SLW = view(words, torch.int64, slots, lanes, WORDS)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.lost = zeros(lanes, dtype=torch.int32)
        self.owners = zeros(*owners_shape, dtype=torch.int32)
        patience = zeros(1)
        self.outboxes = [
            Outbox(
                answers=answers_SLD[slot],
                words=words_SLW[slot],
                asked=zeros(lanes, WORDS),
                owners=self.owners,
                lanes=zeros(geometry.capacity, geometry.places, dtype=torch.int32),
                sequence=zeros(1),
                lost=self.lost,
                arrived=zeros(lanes, dtype=torch.int32),
                patience=patience,
            )
            for slot in range(slots)
        ]
        patience.fill_(round(PATIENCE_S * 1e9))
        self.patience = patience
        self._lanes = Lanes(lanes - 1, first=1)
        self._peers: dict[Life, Peer] = {}
        self._boxes: dict[Life, Tensor] = {}  # [slots, W]: what `asked` says of it
        self._told = torch.full((1,), TOLD, dtype=torch.int32, pin_memory=device.type == "cuda")

    @property
    def lanes(self) -> dict[Life, int]:
        """Of those that can be asked."""
        return {life: lane for life, lane in self._lanes.live.items() if life in self._peers}

    def ask(self, expert: Life) -> OpenBox:
        """What to send to an expert actor; raises LanesTaken."""
        lane = self._lanes.open(expert)
        for outbox in self.outboxes:
            outbox.words[lane] = 0
            outbox.arrived[lane] = 0
        self.lost[lane] = LIVE
        return OpenBox(
            handle=self._memory.handle, lanes=self._num_lanes, lane=lane, shape=self._geometry.shape
        )

    def opened(self, expert: Life, given: BoxOpened) -> None:
        """It can be asked for what `set_owners` says."""
        geometry = self._geometry
        peer = self._open_peer(given.handle)
        self._peers[expert] = peer
        (values, scales, experts, heads), _ = geometry.inbox(given.lanes)
        rows = given.lanes * geometry.slots * geometry.capacity
        boxes = torch.zeros(geometry.slots, WORDS, dtype=torch.int64)
        for slot in range(geometry.slots):
            box = given.lane * geometry.slots + slot
            first = box * geometry.capacity
            boxes[slot, VALUES] = peer.address + values + first * geometry.width
            boxes[slot, SCALES] = peer.address + scales + first * 4
            boxes[slot, EXPERTS] = peer.address + experts + first * geometry.per_row * 4
            boxes[slot, HEAD] = peer.address + heads + box * WORDS * 8
            boxes[slot, STRIDE] = rows
        self._boxes[expert] = boxes

    def set_owners(self, owner_LE: Mapping[int, list[Life]]) -> None:
        """By layer, for all of them, who computes each expert: lives in `lanes`. Between steps.

        Who computes nothing is not asked, so that nobody waits for it.
        """
        lanes = self.lanes
        for layer, owners in owner_LE.items():
            self.owners[layer] = torch.tensor([lanes[life] for life in owners], dtype=torch.int32)
        needed = {life for owners in owner_LE.values() for life in owners}
        for slot, outbox in enumerate(self.outboxes):
            asked = torch.zeros(self._num_lanes, WORDS, dtype=torch.int64)
            for life in needed:
                asked[lanes[life]] = self._boxes[life][slot]
            outbox.asked.copy_(asked)

    def tell_lost(self, expert: Life, beside: torch.cuda.Stream | None = None) -> None:
        """End a wait for it now. On CUDA from any thread, by a stream beside the one that waits."""
        lane = self._lanes.live.get(expert)
        if lane is None:
            return
        word = self.lost[lane : lane + 1]
        if beside is None:
            word.copy_(self._told)
            return
        with torch.cuda.stream(beside):
            word.copy_(self._told, non_blocking=True)

    def found_lost(self, lost: Tensor) -> dict[Life, int]:
        """Who was not waited for to the end, and why (LATE, TOLD, REFUSING); lost: a copy of self.lost."""
        words = lost.tolist()
        return {life: words[lane] for life, lane in self._lanes.live.items() if words[lane] != LIVE}

    def lose(self, expert: Life) -> None:
        """Ask it no more; between steps."""
        lane = self._lanes.live.get(expert)
        if lane is not None:
            self._lanes.lose(expert)
            for outbox in self.outboxes:
                outbox.asked[lane] = 0

    def bury(self, expert: Life) -> None:
        """Its process has ended."""
        self._lanes.bury(expert)
        self._boxes.pop(expert, None)
        if (peer := self._peers.pop(expert, None)) is not None:
            peer.close()


class _Views:
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
