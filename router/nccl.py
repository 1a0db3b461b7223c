"""A star of NCCL pairs: an expert actor and each of its askers in a communicator of two.

Fixed-capacity blocks, sent and received on the step's stream, so that a CUDA graph may hold them. A death
breaks one pair; who notices it (the control connection does, NCCL does not) aborts that pair, whose receive
then ends without an error and with rubbish: `is_aborted` is the truth, never an exception. Knows nothing of
what the blocks mean.

Errors: PeerLost (router/transport.py).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import Backend, PrefixStore, Store, TCPStore

from router.transport import PeerLost

JOIN_S = 30.0
ASKER, EXPERT = 0, 1  # the two ranks


def meeting_store(host: str, *, wait_s: float = JOIN_S) -> TCPStore:
    """Where both ends of a pair find each other: at a free port of this one address.

    torch's own socket would listen at every address of the machine, and asks nobody who he is.
    """
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        None,
        True,
        timedelta(seconds=wait_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


class Pair:
    """One communicator of two; both ends construct it at the same time, under the same name.

    Both directions are tried at once: a first message to a peer that has died since would block its thread
    inside NCCL for good. gloo serves tests; it can neither be captured nor, reliably, aborted.
    """

    def __init__(
        self, store: Store, name: str, rank: int, device: torch.device, *, timeout_s: float = JOIN_S
    ) -> None:
        self._peer = 1 - rank
        self._aborted = threading.Event()
        self._group: Any = _group(PrefixStore(name, store), rank, device, timedelta(seconds=timeout_s))
        probe = torch.full((1,), rank, device=device)
        if rank == ASKER:
            self.send(probe)
            self.receive(probe)
        else:
            received = torch.empty_like(probe)
            self.receive(received)
            self.send(probe)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    @property
    def is_aborted(self) -> bool:
        return self._aborted.is_set()

    def send(self, block: Tensor) -> None:
        """Ordered with the current stream. Raises PeerLost where the backend tells."""
        self._do(lambda: self._group.send([block], self._peer, 0).wait())

    def receive(self, block: Tensor) -> None:
        """Into `block`, ordered with the current stream; rubbish if `is_aborted` by the time it is read."""
        self._do(lambda: self._group.recv([block], self._peer, 0).wait())

    def abort(self) -> None:
        """End what hangs in this pair, from any thread; about half a second on a GPU.

        CUDA graphs that hold its sends and receives must not be launched again.
        """
        self._aborted.set()
        self._group.abort()

    def _do(self, move: Callable[[], object]) -> None:
        if self.is_aborted:
            raise PeerLost("the pair was aborted")
        try:
            move()
        except RuntimeError as error:  # all that gloo raises, whatever happened
            self._aborted.set()
            raise PeerLost(str(error).splitlines()[0][:200]) from None


def _group(store: Store, rank: int, device: torch.device, timeout: timedelta) -> Backend:
    """Made without torch's world, which no actor may leave or join."""
    if device.type == "cuda":
        from torch.distributed import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = timeout
        return ProcessGroupNCCL(store, rank, 2, options)
    from torch.distributed import ProcessGroupGloo

    return ProcessGroupGloo(store, rank, 2, timeout)
