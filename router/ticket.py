"""What one dispatch has sent out and what has come back.

Pairs are kept in order, each either owed by an actor, parked, or placed; the sum is of all. Also who said
that a row is not finite: one answer alone is not believed. Knows nothing of transports or views.

Letters: T tokens  K experts per token  D hidden  P = T * K pairs
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.sum_rows import weighted_sums
from router.assign import Ints
from router.heartbeat import Silence
from router.transport import DispatchKey, Parcel
from router.view import ActorId

Pairs = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Ticket:
    """What dispatch hands to combine, for one layer of one micro-batch; used once.

    waiting: by open key, the actor and its pairs. sent_s: when. accused: by pair, who said first that its
    row is not finite.
    """

    layer: int
    micro_batch: int
    num_tokens: int
    rows_TD: Tensor
    expert_P: Ints
    returned_PD: Tensor
    deadline_s: float
    waiting: dict[DispatchKey, tuple[ActorId, Pairs]] = field(default_factory=dict)
    sent_s: dict[DispatchKey, float] = field(default_factory=dict)
    parked_P: Pairs = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    silences: defaultdict[ActorId, Silence] = field(default_factory=lambda: defaultdict(Silence))
    accused: dict[int, ActorId] = field(default_factory=dict)

    @staticmethod
    def of(layer: int, micro_batch: int, rows_TD: Tensor, experts_TK: Tensor, deadline_s: float) -> Ticket:
        """Nothing is sent yet."""
        expert_P = experts_TK.reshape(-1).numpy().astype(np.int32)
        return Ticket(
            layer=layer,
            micro_batch=micro_batch,
            num_tokens=rows_TD.shape[0],
            rows_TD=rows_TD,
            expert_P=expert_P,
            returned_PD=rows_TD.new_empty(len(expert_P), rows_TD.shape[1]),
            deadline_s=deadline_s,
        )

    @property
    def is_complete(self) -> bool:
        return not self.waiting and not len(self.parked_P)

    @property
    def owing(self) -> set[ActorId]:
        return {actor for actor, _ in self.waiting.values()}

    def owed_by(self, actor: ActorId) -> list[tuple[DispatchKey, Pairs]]:
        return [(key, pairs) for key, (name, pairs) in self.waiting.items() if name == actor]

    def tokens_of(self, pairs: Pairs) -> Pairs:
        """Which token each pair belongs to."""
        return pairs // (len(self.expert_P) // self.num_tokens)

    def send(self, key: DispatchKey, actor: ActorId, pairs: Pairs, now_s: float) -> Parcel:
        """What the actor is to compute under this key, which it owes from now on."""
        self.waiting[key] = (actor, pairs)
        self.sent_s[key] = now_s
        rows_RD, row_P = self.rows_TD, self.tokens_of(pairs)
        if len(pairs) < len(self.expert_P):
            tokens, row_P = _distinct(row_P, self.num_tokens)
            if len(tokens) < self.num_tokens:
                rows_RD = rows_RD.index_select(0, torch.from_numpy(tokens))
        expert_P = self.expert_P[pairs]
        return Parcel(key=key, rows_RD=rows_RD, row_P=row_P.astype(np.int32), expert_P=expert_P)

    def park(self, pairs: Pairs) -> None:
        """Nobody holds their experts now. In order, as all pairs are kept: see place."""
        self.parked_P = np.sort(np.concatenate([self.parked_P, pairs]))

    def place(self, key: DispatchKey, rows_PD: Tensor) -> None:
        """Take the answer to an open key."""
        _, pairs = self.waiting.pop(key)
        if len(pairs) == len(self.expert_P):  # all, in order
            self.returned_PD = rows_PD
        else:
            self.returned_PD.index_copy_(0, torch.from_numpy(pairs), rows_PD)

    def summed(self, weights_TK: Tensor) -> Tensor:
        """Each token's rows in the order of K, weighted, in fp32; [T, D] in the rows' dtype."""
        return weighted_sums(self.returned_PD, weights_TK)

    def doubted(self, pairs: Pairs, rows_PD: Tensor) -> list[int]:
        """Pairs whose row is not finite, though what was sent was and nobody else has said so."""
        sent_PD = self.rows_TD[torch.from_numpy(self.tokens_of(pairs))]
        bad_P = (_finite(sent_PD) & ~_finite(rows_PD)).numpy()
        return [pair for pair in pairs[bad_P].tolist() if pair not in self.accused]

    def verdicts(self, actor: ActorId, pairs: Pairs, rows_PD: Tensor) -> dict[ActorId, bool]:
        """Of those that others accused before: whether this answer convicts them."""
        verdicts: dict[ActorId, bool] = {}
        for pair, is_finite in zip(pairs.tolist(), _finite(rows_PD).tolist(), strict=True):
            accused = self.accused.get(pair)
            if accused is not None and accused != actor:
                verdicts[accused] = verdicts.get(accused, False) or is_finite
        return verdicts

    def forget_doubts(self) -> None:
        """The actors are others now."""
        self.silences.clear()
        self.accused.clear()


def _finite(rows_PD: Tensor) -> Tensor:
    """[P]: whether a row is finite."""
    return torch.isfinite(rows_PD).all(-1)


def _distinct(values: Pairs, limit: int) -> tuple[Pairs, Pairs]:
    """np.unique(values, return_inverse=True) for values below limit, without its sort: it runs per layer."""
    present = np.zeros(limit, dtype=bool)
    present[values] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[values]
