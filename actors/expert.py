"""The expert actor: slots of weights and a loop that answers.

No request state at all: a reply is a function of (weights, rows), so any replica may answer, twice or never.
Parcels for one layer that have arrived together, from whichever attention actors, are computed together;
nobody is waited for. Knows nothing of Ray: cluster/ wraps this class as an actor, tests run it in a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from actors.metrics import Sample
from actors.trace import Recorder
from kernels.rows import dtype_of_rows
from model.config import ModelConfig
from model.experts import ExpertShard, Mlp
from model.load import Reader, load_expert
from model.shards import CheckpointError
from router.assign import Ints
from router.heartbeat import beating
from router.listener import Listener, Peer
from router.parcels import Dispatch, Key, Nack, pack_reply, unpack_parcel
from router.transport import Parcel
from router.view import Pair
from router.wire import BadFrame, kinds

logger = logging.getLogger(__name__)

NOTHING_KNOWN: Mapping[Pair, int] = MappingProxyType({})


class HeldExperts:
    """A shard with a slot for every expert, and the table that says which of them are filled."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self._config = config
        self.shard = ExpertShard(config, config.num_experts, dtype_of_rows(dtype))
        shape = (config.routed_layers.stop, config.num_experts)
        self._held_LE: NDArray[np.bool_] = np.zeros(shape, dtype=bool)
        self.digests: dict[Pair, int] = {}  # of what was read of each, dropped ones too

    @property
    def pairs(self) -> frozenset[Pair]:
        """Every (layer, expert) that is held."""
        return frozenset((int(layer), int(expert)) for layer, expert in np.argwhere(self._held_LE))

    def fill(self, layer: int, expert: int, weights: Mlp) -> None:
        """Hold an expert; any thread may, while others are computed."""
        self.shard.fill(layer, expert, weights)
        self._held_LE[layer, expert] = True

    def drop(self, layer: int, expert: int) -> None:
        """Hold it no more; on the thread that computes, so never in the middle of it."""
        self._held_LE[layer, expert] = False
        self.shard.clear(layer, expert)

    def spoil(self) -> None:
        """Overwrite every weight by NaN."""
        shape = (self._config.hidden_size, self._config.moe_intermediate_size)
        nan = Mlp(
            gate_up_DF=torch.full((shape[0], 2 * shape[1]), torch.nan, dtype=self.shard.dtype),
            down_FD=torch.full(shape[::-1], torch.nan, dtype=self.shard.dtype),
        )
        for layer, expert in self.pairs:
            self.fill(layer, expert, nan)

    def holds(self, layer: int, expert_P: Ints) -> bool:
        inside = (expert_P >= 0) & (expert_P < self._held_LE.shape[1])
        return bool(inside.all()) and bool(self._held_LE[layer, expert_P].all())

    def forward(self, layer: int, rows_RD: torch.Tensor, row_P: Ints, expert_P: Ints) -> torch.Tensor:
        """rows through the experts they name; every expert must be held."""
        return self.shard.forward(layer, rows_RD, row_P, expert_P)


def load_experts(
    reader: Reader,
    held: HeldExperts,
    pairs: Iterable[Pair],
    dtype: torch.dtype,
    known: Mapping[Pair, int] = NOTHING_KNOWN,
) -> None:
    """Read experts, one at a time so that only one is in memory twice, and hold each as it comes.

    known: digests of those that were read before, by anybody. Raises CheckpointError at the first that is
    not what it was: copies that differ would make the text depend on who answers.
    """
    reader.digest()  # of what was read before is nobody's
    for layer, expert in sorted(pairs):
        weights, digest = load_expert(reader, layer, expert, dtype), reader.digest()
        if known.get((layer, expert), digest) != digest:
            raise CheckpointError(
                f"expert {expert} of layer {layer} is not what was read of it before: a shard has changed or "
                "is damaged; put back the files that this cluster was started with"
            )
        held.digests[layer, expert] = digest
        held.fill(layer, expert, weights)


def in_every_layer(config: ModelConfig, experts: Iterable[int]) -> list[Pair]:
    """The pairs of the same experts in each MoE layer."""
    return list(product(config.routed_layers, experts))


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
        self._own = self._held = held
        self._listener = Listener(
            host, port, token=token, actor=actor_id, incarnation=incarnation, accepted=kinds(Dispatch)
        )
        self._stopping = threading.Event()
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
                    self.counters.busy_s += time.perf_counter() - start_s
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

    @property
    def pairs(self) -> frozenset[Pair]:
        """What is held and will be."""
        return self._held.pairs.difference(*(pairs for pairs, _ in list(self._to_drop)))

    @property
    def digests(self) -> dict[Pair, int]:
        """Of every expert that it has read."""
        return dict(self._own.digests)

    def take(
        self,
        reader: Reader,
        pairs: Iterable[Pair],
        dtype: torch.dtype,
        known: Mapping[Pair, int] = NOTHING_KNOWN,
    ) -> None:
        """Hold more experts, read on the caller's thread while others are served; as load_experts."""
        load_experts(reader, self._own, pairs, dtype, known)

    def drop(self, pairs: Iterable[Pair]) -> None:
        """Hold them no more; nobody may ask for them any longer. From any thread, while `run` goes on."""
        dropped = threading.Event()
        self._to_drop.append((frozenset(pairs), dropped))
        self._listener.wake()
        dropped.wait()

    def spoil(self) -> None:
        """For fault tests: weights that are not numbers, as a broken memory would leave them."""
        self._held.spoil()

    def record(self, recorder: Recorder | None) -> None:
        """Note when experts compute, or no more; safe from any thread."""
        self._held = self._own if recorder is None else recorder.timed(self._own, "forward", "experts")

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
        yield Sample("shoal_experts_held", len(self._held.pairs) / len(self._config.routed_layers))

    def _drop(self) -> None:
        while self._to_drop:
            pairs, dropped = self._to_drop[0]
            for layer, expert in pairs:
                self._held.drop(layer, expert)
            self._to_drop.popleft()
            dropped.set()

    def _arrivals(self) -> list[_Order]:
        orders = []
        for arrival in self._listener.poll(None):
            if arrival.frame is None:
                continue  # an attention actor left: nothing here belongs to it
            assert isinstance(arrival.frame.message, Dispatch), "the listener accepts Dispatch only"
            try:
                parcel = unpack_parcel(arrival.frame.message, arrival.frame.payload)
            except BadFrame as error:
                self._refuse(arrival.peer, arrival.frame.message.key, str(error))
                continue
            if reason := self._objection(parcel):
                self._refuse(arrival.peer, arrival.frame.message.key, reason)
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

    def _refuse(self, peer: Peer, key: Key, reason: str) -> None:
        self.counters.refused += 1
        logger.warning("refusing a parcel of %s: %s", peer.actor, reason)
        self._listener.send(peer, Nack(key=key, reason=reason[:200]))
