"""The expert actor: slots of weights and a loop that answers.

No request state at all: a reply is a function of (weights, rows), so any replica may answer, twice or never.
Parcels for one layer that have arrived together, from whichever attention actors, are computed together;
nobody is waited for. Others of its kind get experts that it holds, part by part between batches. Knows
nothing of Ray: cluster/ wraps this class as an actor, tests run it in a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from actors.expert_frames import ExpertWanted, part_of
from actors.fault_points import arm
from actors.held import HeldExperts
from actors.metrics import Sample
from actors.trace import Recorder
from model.config import ModelConfig
from router.heartbeat import beating
from router.listener import Listener, Peer
from router.parcels import Dispatch, Key, Nack, pack_reply, unpack_parcel
from router.transport import Parcel
from router.view import Pair
from router.wire import BadFrame, kinds

logger = logging.getLogger(__name__)

GIVEN_SHARE = 0.1  # of the time of a batch, for those who take experts over


@dataclass(frozen=True, slots=True)
class _Order:
    peer: Peer
    parcel: Parcel


@dataclass(slots=True)
class ExpertCounters:
    parcels: int = 0
    pairs: int = 0
    batches: int = 0
    refused: int = 0
    bytes_given: int = 0
    busy_s: float = 0.0


class ExpertServer:
    """Answers parcels until told to stop."""

    def __init__(
        self,
        config: ModelConfig,
        held: HeldExperts,
        *,
        actor_id: str,
        incarnation: int,
        token: bytes,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._config = config
        self.held = self._held = held
        self._listener = Listener(
            host,
            port,
            token=token,
            actor=actor_id,
            incarnation=incarnation,
            accepted=kinds(Dispatch, ExpertWanted),
        )
        self._stopping = threading.Event()
        self._to_give: deque[tuple[Peer, ExpertWanted]] = deque()
        self._to_drop: deque[tuple[frozenset[Pair], threading.Event]] = deque()
        self.host, self.port = self._listener.host, self._listener.port
        self.counters = ExpertCounters()

    def run(self) -> None:
        """The loop: take what has arrived, compute, answer."""
        try:
            with beating(self._listener.beat):
                while not self._stopping.is_set():
                    self._drop()
                    orders = self._arrivals()
                    start_s = time.perf_counter()
                    for layer in sorted({order.parcel.key.layer for order in orders}):
                        self._compute(layer, [order for order in orders if order.parcel.key.layer == layer])
                    busy_s = time.perf_counter() - start_s
                    self.counters.busy_s += busy_s
                    self._give(GIVEN_SHARE * busy_s)
        finally:
            self._listener.close()

    @property
    def epoch(self) -> int:
        """Of the newest view: an expert actor knows none."""
        return 0

    epoch_in_use = epoch

    @property
    def convicted(self) -> tuple[tuple[str, int], ...]:
        """It asks nobody, so it catches nobody."""
        return ()

    num_sequences, is_handing_over = 0, False  # it has no sequences

    @property
    def pairs(self) -> frozenset[Pair]:
        """What is held and will be."""
        return self._held.pairs.difference(*(pairs for pairs, _ in list(self._to_drop)))

    @property
    def digests(self) -> dict[Pair, int]:
        """Of every expert that it has taken."""
        return dict(self.held.digests)

    def drop(self, pairs: Iterable[Pair]) -> None:
        """Hold them no more; nobody may ask for them any longer. From any thread, while `run` goes on."""
        dropped = threading.Event()
        self._to_drop.append((frozenset(pairs), dropped))
        self._listener.wake()
        dropped.wait()

    def spoil(self) -> None:
        """For fault tests: weights that are not numbers, as a broken memory would leave them."""
        self._held.spoil()

    def arm(self, point: str, passes: int) -> None:
        """For fault tests, as actors.fault_points.arm; safe from any thread."""
        arm({"held": self.held, "listener": self._listener}, point, passes)

    def record(self, recorder: Recorder | None) -> None:
        """Note when experts compute, or no more; safe from any thread."""
        self._held = self.held if recorder is None else recorder.timed(self.held, "forward", "experts")

    def stop(self) -> None:
        """End the loop soon; safe from any thread."""
        self._stopping.set()
        self._listener.wake()

    def stats(self) -> dict[str, float]:
        """Counters since birth."""
        counters = self.counters
        return {
            "parcels": counters.parcels,
            "pairs": counters.pairs,
            "batches": counters.batches,
            "refused": counters.refused,
            "busy_s": counters.busy_s,
        }

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        counters = self.counters
        yield Sample("shoal_expert_parcels_total", counters.parcels)
        yield Sample("shoal_expert_rows_total", counters.pairs)
        yield Sample("shoal_expert_batches_total", counters.batches)
        yield Sample("shoal_expert_refused_total", counters.refused)
        yield Sample("shoal_expert_busy_seconds_total", counters.busy_s)
        yield Sample("shoal_expert_bytes_given_total", counters.bytes_given)
        yield from self.held.samples()

    def _drop(self) -> None:
        while self._to_drop:
            pairs, dropped = self._to_drop[0]
            for layer, expert in pairs:
                self._held.drop(layer, expert)
            self._to_drop.popleft()
            dropped.set()

    def _arrivals(self) -> list[_Order]:
        orders = []
        for arrival in self._listener.poll(0 if self._to_give else None):
            if arrival.frame is None:
                continue  # an attention actor left: nothing here belongs to it
            message = arrival.frame.message
            if isinstance(message, ExpertWanted):
                self._to_give.append((arrival.peer, message))
                continue
            assert isinstance(message, Dispatch), "the listener accepts nothing else"
            try:
                parcel = unpack_parcel(message, arrival.frame.payload)
            except BadFrame as error:
                self._refuse(arrival.peer, message.key, str(error))
                continue
            if reason := self._objection(parcel):
                self._refuse(arrival.peer, message.key, reason)
            else:
                orders.append(_Order(arrival.peer, parcel))
        return orders

    def _objection(self, parcel: Parcel) -> str | None:
        """Why this parcel cannot be answered here, or None."""
        config = self._config
        if parcel.key.layer not in config.routed_layers:
            return f"layer {parcel.key.layer} has no routed experts"
        if parcel.rows_RD.shape[1] != config.hidden_size:
            return f"rows are {parcel.rows_RD.shape[1]} wide, the model {config.hidden_size}"
        if parcel.rows_RD.dtype != self._held.shard.dtype:
            return f"rows are {parcel.rows_RD.dtype}, expected {self._held.shard.dtype}"
        if not self._held.holds(parcel.key.layer, parcel.expert_P):
            return "an expert is not held here"
        return None

    @torch.inference_mode()
    def _compute(self, layer: int, orders: list[_Order]) -> None:
        """All parcels of one layer in one pass over the weights."""
        rows = [order.parcel.rows_RD for order in orders]
        first_row = np.cumsum([0] + [len(r) for r in rows[:-1]])
        row_P = np.concatenate([o.parcel.row_P + f for o, f in zip(orders, first_row, strict=True)])
        expert_P = np.concatenate([order.parcel.expert_P for order in orders])
        rows_RD = torch.cat(rows) if len(rows) > 1 else rows[0]
        out_PD = self._held.forward(layer, rows_RD, row_P.astype(np.int32), expert_P)
        start = 0
        for order in orders:
            count = len(order.parcel.row_P)
            reply, payload = pack_reply(order.parcel.key, out_PD[start : start + count])
            self._listener.send(order.peer, reply, payload)
            start += count
        self.counters.parcels += len(orders)
        self.counters.pairs += len(expert_P)
        self.counters.batches += 1

    def _give(self, seconds: float) -> None:
        """To those who take experts over, after all who wait for rows: a part, and more for so long."""
        until_s = time.perf_counter() + seconds
        while self._to_give:
            peer, wanted = self._to_give.popleft()
            part, payload = part_of(self.held.weights(wanted.layer, wanted.expert), wanted)
            self._listener.send(peer, part, *payload)
            self.counters.bytes_given += sum(map(len, payload))
            if time.perf_counter() >= until_s:
                return

    def _refuse(self, peer: Peer, key: Key, reason: str) -> None:
        self.counters.refused += 1
        logger.warning("refusing a parcel of %s: %s", peer.actor, reason)
        self._listener.send(peer, Nack(key=key, reason=reason[:200]))
