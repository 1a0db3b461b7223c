"""Another expert actor, as a source of experts.

What it sends must be what is known of each expert; who dies, keeps silent or sends anything else is asked no
more. Knows nothing of other sources.

Errors: PeerFailed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from actors.expert_frames import PART_BYTES, Assembly, ExpertPart
from actors.held import PEERS
from actors.options import ExpertOrder
from model.config import ModelConfig
from model.expert_form import digest_of
from model.experts import Mlp
from model.reader import Progress
from router.connection import Connection, connect
from router.dialogue import hear, say
from router.heartbeat import Beat
from router.transport import PeerLost
from router.view import ExpertActor, Pair, View
from router.wire import WireError, kinds

PATIENCE_S = 10.0  # for one answer: longer than a peer computes
MAX_FRAME_BYTES = PART_BYTES + 4096


class PeerFailed(Exception):  # noqa: N818 - named for what happened, as the rest of the tree
    """An expert cannot be had from this peer; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taker:
    """Who takes experts from peers, and what of: dtype of the products' weights, note of the bytes."""

    actor_id: str
    incarnation: int
    token: bytes
    config: ModelConfig
    dtype: torch.dtype
    note: Callable[[Progress], None]


class ExpertPeer:
    """known: what it holds of that which is wanted, and the digest that each must have."""

    origin = PEERS

    def __init__(self, actor: ExpertActor, known: Mapping[Pair, int], taker: Taker) -> None:
        self.name = str(actor.actor_id)
        self._actor, self._known, self._taker = actor, known, taker
        self._connection: Connection | None = None
        self._is_sound = True
        self._num_bytes = 0
        self._start_s = time.perf_counter()

    def has(self, pair: Pair) -> bool:
        """Whether it is worth asking."""
        return self._is_sound and pair in self._known

    def expert(self, pair: Pair) -> tuple[Mlp, int]:
        """Its weights and their digest. Raises PeerFailed, the last time if that is the peer's fault."""
        try:
            weights = self._fetch(pair)
        except (PeerLost, WireError, TimeoutError) as error:
            self._is_sound = False
            self.close()
            raise PeerFailed(f"failed on the way: {error}") from None
        digest = digest_of(weights)
        if digest != self._known[pair]:
            self._is_sound = False
            raise PeerFailed("what it holds is not what was read at first: its memory is damaged")
        return weights, digest

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _fetch(self, pair: Pair) -> Mlp:
        connection, taker = self._connected(), self._taker
        assembly = Assembly(taker.config, taker.dtype, pair)
        while (weights := assembly.whole) is None:
            for wanted in assembly.wanted():
                say(connection, wanted, patience_s=PATIENCE_S)
            part, payload = hear(connection, ExpertPart, patience_s=PATIENCE_S)
            if part.problem is not None:
                self.close()  # what else was asked for is answered, too
                raise PeerFailed(f"refuses: {part.problem[:200]}")
            assembly.add(part, payload)
            self._tell(len(payload), assembly.total_bytes)
        return weights

    def _tell(self, num_bytes: int, bytes_each: int) -> None:
        self._num_bytes += num_bytes
        self._taker.note(
            Progress(
                bytes_read=self._num_bytes,
                bytes_total=max(self._num_bytes, bytes_each * len(self._known)),
                seconds=time.perf_counter() - self._start_s,
            )
        )

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(
                self._actor,
                token=self._taker.token,
                actor=self._taker.actor_id,
                incarnation=self._taker.incarnation,
                accepted=kinds(ExpertPart, Beat),
                role="expert",
                timeout_s=PATIENCE_S,
            )
            self._connection.admit(kinds(ExpertPart, Beat), MAX_FRAME_BYTES)
        return self._connection


@contextmanager
def peers_of(order: ExpertOrder, taker: Taker) -> Iterator[list[ExpertPeer]]:
    """Those who hold some of what is ordered and known, until the end of the block."""
    peers = [] if order.view is None else list(_peers(order, View.from_bytes(order.view), taker))
    try:
        yield peers
    finally:
        for peer in peers:
            peer.close()


def _peers(order: ExpertOrder, view: View, taker: Taker) -> Iterator[ExpertPeer]:
    for place, actor in enumerate(view.actors):
        pairs = view.pairs_of(place) & order.pairs & order.known.keys()
        if pairs and (actor.actor_id, actor.incarnation) != (taker.actor_id, taker.incarnation):
            yield ExpertPeer(actor, {pair: order.known[pair] for pair in pairs}, taker)
