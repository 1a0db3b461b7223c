"""What an actor is told at birth.

Plain numbers and strings, so that whoever spawns actors need not import torch. Knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from router.view import Pair

WeightsFrom = Literal["files", "peers"]
MicroBatches = Literal[1, 2, "auto"]  # of a step; auto: what measuring says


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorOptions:
    """For every data-plane actor.

    directory: the checkpoint. draft_tokens: how far ahead its MTP layer drafts; at 0 nobody loads it. token:
    the cluster token, never logged. device: cpu or cuda. is_urgent: somebody waits until it has loaded.
    weights_from: who is asked first for experts that others hold.
    """

    actor_id: str
    incarnation: int
    directory: str
    dtype: str
    host: str
    token: bytes
    draft_tokens: int
    device: str = "cpu"
    is_urgent: bool = True
    weights_from: WeightsFrom = "files"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertOrder:
    """Experts that an expert actor is to hold, beside what it holds.

    known: digests of those that anybody has held. view: who serves and holds what, packed (router/view.py);
    None: nobody does.
    """

    pairs: frozenset[Pair]
    known: Mapping[Pair, int] = field(default_factory=dict)
    view: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """Of an order. origins: for people: who had how many of them, and why others had not."""

    digests: Mapping[Pair, int]
    origins: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionOptions:
    """local: hold every expert in this process instead of dispatching to expert actors.

    max_queue: most sequences that wait. cache_tokens: None, on a GPU: as many as it has room for. threads: 2:
    one more for the products on a CPU (kernels/crew.py).
    """

    local: bool
    context_tokens: int
    cache_tokens: int | None
    chunk_tokens: int
    max_sequences: int
    prefix_cache: bool
    max_queue: int
    micro_batches: MicroBatches
    threads: int
    answer_timeout_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsRead:
    """How much came from files, and its checksum (model/reader.py)."""

    bytes_read: int
    checksum: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Where a loaded actor listens, and what it read (model/checkpoint.py's checksum).

    metrics_port: of its HTTP listener for Prometheus, on the same host. digests, origins: of an expert actor,
    as in Taken.
    """

    host: str
    port: int
    metrics_port: int
    pid: int
    bytes_read: int
    checksum: str
    digests: Mapping[Pair, int] = field(default_factory=dict)
    origins: str = ""
