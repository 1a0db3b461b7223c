"""An attention actor's mailbox: whom it asks, and who is lost.

Lane 0 is its own, every other one belongs to one life of an expert actor (router/lanes.py). Whatever changes
here changes tables on the device, never a captured graph. Knows nothing of steps.

Letters: L lanes  E experts  W words
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kernels.boxes import EXPERTS, HEAD, LIVE, SCALES, STRIDE, TOLD, VALUES, WORDS, Outbox
from router.lanes import Lanes, Life
from router.shm import Allocate, BoxOpened, Geometry, OpenBox, OpenPeer, Peer, Views

PATIENCE_S = 0.1  # for an answer; the connection knows of most deaths sooner


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
        self.memory = allocate(num_bytes)
        device = self.memory.buffer.device
        view = Views(self.memory.buffer)
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
            handle=self.memory.handle, lanes=self._num_lanes, lane=lane, shape=self._geometry.shape
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
