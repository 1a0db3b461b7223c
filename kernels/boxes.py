"""What lies in a mailbox between GPUs, on either side.

Tensors and the meaning of their words; the kernels that read and write them are kernels/mailbox.py. Knows
nothing of processes: addresses come from router/shm.py.

Letters: R rows  D hidden  K experts of a row  P places of a row (K, and the shared one's)  B boxes  L lanes
W words  E experts
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kernels.fp8_rows import Fp8Rows

WORDS = 8  # int64: what is polled stands in a line of its own
SEQUENCE, LAYER, ROWS = 0, 1, 2  # of a box's head
ANSWERED, REFUSED = 0, 1  # of an answer's words: sequence numbers
VALUES, SCALES, EXPERTS, HEAD, STRIDE = 0, 1, 2, 3, 4  # of an asked lane: addresses, then a number
LIVE, LATE, TOLD, REFUSING = 0, 1, 2, 3  # of `lost`: why nothing more is awaited of a lane


@dataclass(frozen=True, kw_only=True, slots=True)
class Inbox:
    """An expert actor's side. The first three are written by askers, box after box of `capacity` rows.

    rows: FP8 [B * capacity, D]. experts: int32 [B * capacity, K], -1 not asked of this actor. heads: int64
    [B, W]. served, claimed, refused: int64 [B], sequence numbers. back: int64 [B, 2], addresses in the
    asker's memory: its first pair of this lane, the answer's words; 0 where a box is nobody's. timing: int64
    [3]: ns to wait for a first parcel, ns to wait for others then, how many boxes are all.
    """

    rows: Fp8Rows
    experts: Tensor
    heads: Tensor
    served: Tensor
    claimed: Tensor
    refused: Tensor
    back: Tensor
    timing: Tensor
    capacity: int
    places: int

    @property
    def num_boxes(self) -> int:
        return self.heads.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outbox:
    """An asker's side, for one micro-batch; lane 0 is its own.

    answers: bf16 [L, capacity * P, D], lane by lane what one expert actor wrote. words: int64 [L, W], its
    flags. asked: int64 [L, W], where the lane's box is, 0 where there is no actor. owners: int32 [layers, E],
    the lane of each expert. lanes: int32 [capacity, P], of the parcel that is away. sequence: int64 [1].
    lost: int32 [L]. arrived: int32 [L], zero between launches. patience: int64 [1], ns.
    """

    answers: Tensor
    words: Tensor
    asked: Tensor
    owners: Tensor
    lanes: Tensor
    sequence: Tensor
    lost: Tensor
    arrived: Tensor
    patience: Tensor

    @property
    def num_lanes(self) -> int:
        return self.words.shape[0]
