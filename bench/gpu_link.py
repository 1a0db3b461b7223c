"""Two processes of a bench, one GPU each, that know each other.

A store at a port that the parent chose: meeting points, and what mailboxes say to each other. (Serving goes
through proven connections: bench/gpu_faults.py.) Knows nothing of what is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from router.cuda_memory import CudaHost
from router.lanes import Life
from router.shm import BoxOpened, Geometry, OpenBox
from router.shm_asker import AskerMailbox
from router.shm_expert import ExpertMailbox
from router.wire import PREFIX, Message, decode_header, encode, kinds

WAIT_S = 60


class Link:
    """The way to the other process."""

    def __init__(self, port: int, rank: int) -> None:
        self.rank, self.device = rank, torch.device("cuda", rank)
        torch.cuda.set_device(self.device)
        self.store = TCPStore("127.0.0.1", port, 2, rank == 0, timeout=timedelta(seconds=WAIT_S))
        self.memory = CudaHost(self.device)
        self.count = 0

    def meet(self) -> None:
        """Return when both are here."""
        self.swap(b"-")

    def swap(self, data: bytes) -> bytes:
        """Give and take."""
        self.count += 1
        self.store.set(f"{self.count}/{self.rank}", data.hex())
        return bytes.fromhex(self.store.get(f"{self.count}/{1 - self.rank}").decode())

    def life(self, rank: int) -> Life:
        return Life(actor=f"rank-{rank}", incarnation=self.count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """This process's mailboxes: asker if it asks, expert if it serves."""

    asker: AskerMailbox | None
    expert: ExpertMailbox | None
    me: Life
    other: Life


def join(
    link: Link, geometry: Geometry, owners_shape: tuple[int, int], *, asks: bool, serves: bool, own: bool
) -> Joined:
    """Mailboxes to the other process, and to one's own experts where `own` says so."""
    memory = link.memory
    askers = 2 if own else 1
    me, other = link.life(link.rank), link.life(1 - link.rank)
    expert = ExpertMailbox(geometry, askers, memory.allocate, memory.open) if serves else None
    asker = AskerMailbox(geometry, 1 + askers, owners_shape, memory.allocate, memory.open) if asks else None
    wanted = link.swap(encode(asker.ask(other)) if asker else b"")
    opened = expert.open(other, _message(wanted, OpenBox)) if expert and wanted else None
    given = link.swap(encode(opened) if opened else b"")
    if asker:
        asker.opened(other, _message(given, BoxOpened))
    if own and asker and expert:
        asker.opened(me, expert.open(me, asker.ask(me)))
    torch.cuda.synchronize(link.device)
    link.meet()
    return Joined(asker=asker, expert=expert, me=me, other=other)


def report(kind: str, **fields: Any) -> None:
    """A line for the parent."""
    sys.stdout.write(json.dumps({"kind": kind, **fields}) + "\n")
    sys.stdout.flush()


def captured(run: Callable[[], None], stream: torch.cuda.Stream | None = None) -> torch.cuda.CUDAGraph:
    """`run` as a graph; every kernel of it must have been compiled before."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        run()
    return graph


def _message(frame: bytes, message: type[Message]) -> Any:
    return decode_header(frame[PREFIX.size :], kinds(message))
