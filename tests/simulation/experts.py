"""Expert actors of the simulation: the real server, with its socket and its arithmetic taken out.

What a made-up expert answers is exact in fp32, so any order of any sum is too. Knows nothing of clocks and
faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors import expert
from actors.expert import ExpertServer
from router.assign import Ints
from router.listener import Arrival
from router.view import ExpertActor
from router.wire import Frame

NUM_EXPERTS, FIRST_LAYER, HIDDEN = 6, 3, 2


def answers(layer: int, rows_RD: Tensor, row_P: Ints, expert_P: Ints) -> Tensor:
    """One row for each pair."""
    expert_P1 = expert_P[:, None]
    return torch.from_numpy(
        rows_RD.numpy()[row_P] * (expert_P1 + layer).astype(np.float32) + (10 * expert_P1).astype(np.float32)
    )


class MadeUpExperts:
    """In place of actors.expert.HeldExperts. What it holds may change, and the width of what it answers."""

    shard = SimpleNamespace(dtype=torch.float32)

    def __init__(self, held: Iterable[int]) -> None:
        self.held = frozenset(held)
        self.times_as_wide = 1

    def forward(self, layer: int, rows_RD: Tensor, row_P: Ints, expert_P: Ints) -> Tensor:
        return answers(layer, rows_RD, row_P, expert_P).repeat(1, self.times_as_wide)

    def holds(self, layer: int, expert_P: Ints) -> bool:
        return self.held.issuperset(expert_P.tolist())


class Mailbox:
    """In place of router.listener.Listener: what has arrived, and what is to be sent."""

    host, port = "simulated", 0

    def __init__(self, *_: object, **__: object) -> None:
        self.arrivals: list[Arrival] = []
        self.sent: list[tuple[Any, Frame]] = []
        self.after_poll: Callable[[], None] = lambda: None

    def poll(self, timeout_s: float | None) -> list[Arrival]:
        arrivals, self.arrivals = self.arrivals, []
        self.after_poll()
        return arrivals

    def send(self, peer: Any, message: Any, *payload: bytes | memoryview) -> None:
        self.sent.append((peer, Frame(message, memoryview(bytearray().join(payload)))))

    def wake(self) -> None:
        pass

    def beat(self) -> None:
        pass

    def close(self) -> None:
        pass


class Life:
    """One life of an expert actor."""

    def __init__(self, actor: ExpertActor, held: Iterable[int], num_layers: int) -> None:
        config: Any = SimpleNamespace(
            routed_layers=range(FIRST_LAYER, FIRST_LAYER + num_layers), hidden_size=HIDDEN
        )
        experts: Any = MadeUpExperts(held)
        self.actor = actor
        self.experts: MadeUpExperts = experts
        self.is_alive = True
        self.is_held = False  # by a partition, or stopped
        self.is_due = False  # a turn of its loop is to come
        self._server = ExpertServer(
            config, experts, actor_id=actor.actor_id, incarnation=actor.incarnation, token=b""
        )
        self._mailbox: Any = self._server._listener
        assert isinstance(self._mailbox, Mailbox), "patch actors.expert.Listener first"
        self._mailbox.after_poll = self._server.stop

    def deliver(self, peer: Any, frame: Frame) -> None:
        self._mailbox.arrivals.append(Arrival(peer, frame))

    def turn(self) -> list[tuple[Any, Frame]]:
        """Once around the loop: what it answers to all that has arrived, and whom."""
        self._server._stopping.clear()
        self._server.run()
        sent, self._mailbox.sent = self._mailbox.sent, []
        return sent


def without_sockets(monkeypatch: Any) -> None:
    monkeypatch.setattr(expert, "Listener", Mailbox)
