"""An expert actor's mailbox: which askers may write to it.

A lane is one asker's life (router/lanes.py), with a box for each parcel that it may have away. Knows nothing
of experts.

Letters: B boxes (lane * slots + slot)
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.boxes import WORDS, Inbox
from kernels.fp8_rows import GROUP, Fp8Rows
from router.lanes import Lanes, Life
from router.shm import Allocate, BoxOpened, Geometry, OpenBox, OpenPeer, Peer, Unfit, Views

IDLE_S = 0.0002  # a turn waits so long for a first parcel, then it ends
LINGER_S = 0.00002  # and for those of other askers after it


class ExpertMailbox:
    """An expert actor's inbox and who writes there. What changes it is ordered by the current stream."""

    def __init__(self, geometry: Geometry, lanes: int, allocate: Allocate, open_peer: OpenPeer) -> None:
        self._geometry, self._num_lanes, self._open_peer = geometry, lanes, open_peer
        (values, scales, experts, heads), num_bytes = geometry.inbox(lanes)
        self.memory = allocate(num_bytes)
        device = self.memory.buffer.device
        boxes = lanes * geometry.slots
        rows, groups = boxes * geometry.capacity, geometry.width // GROUP
        view = Views(self.memory.buffer)

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
        return BoxOpened(handle=self.memory.handle, lanes=self._num_lanes, lane=lane)

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
