"""Mailboxes within one process: a lane of plain memory each way, and a clock for the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
import torch
from torch import Tensor

from router.lanes import Life
from router.shm import Geometry, OpenPeer
from router.shm_asker import AskerMailbox
from router.shm_expert import ExpertMailbox

TICK_NS = 1000


class PlainMemory:
    """Its handle is its address."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.buffer: Tensor = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self.address = self.buffer.data_ptr()
        self.handle = self.address.to_bytes(8, "little")


class PlainPeer:
    def __init__(self, handle: bytes) -> None:
        self.address = int.from_bytes(handle, "little")
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def expert_mailbox(
    geometry: Geometry, lanes: int, device: torch.device, open_peer: OpenPeer = PlainPeer
) -> ExpertMailbox:
    return ExpertMailbox(geometry, lanes, lambda size: PlainMemory(size, device), open_peer)


def asker_mailbox(
    geometry: Geometry, lanes: int, owners_shape: tuple[int, int], device: torch.device
) -> AskerMailbox:
    return AskerMailbox(geometry, lanes, owners_shape, lambda size: PlainMemory(size, device), PlainPeer)


def join(asker: AskerMailbox, asker_life: Life, expert: ExpertMailbox, expert_life: Life) -> None:
    """What the two say to each other over their connection."""
    asker.opened(expert_life, expert.open(asker_life, asker.ask(expert_life)))


@pytest.fixture
def ticking(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where kernels are interpreted, every look at the clock takes a microsecond."""
    if device.type == "cpu":
        ticks = count(0, TICK_NS)
        monkeypatch.setattr("kernels.mailbox._now", lambda: next(ticks))
    yield
