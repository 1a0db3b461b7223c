"""What an actor is told at birth.

Plain numbers and strings, so that whoever spawns actors need not import torch. Knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from router.view import Pair

MicroBatches = Literal[1, 2, "auto"]  # of a step; auto: what measuring says


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorOptions:
    """For every data-plane actor.

    directory: the checkpoint. draft_tokens: how far ahead its MTP layer drafts; at 0 nobody loads it. token:
    the cluster token, never logged. device: cpu or cuda.
    """

    actor_id: str
    incarnation: int
    directory: str
    dtype: str
    host: str
    token: bytes
    draft_tokens: int
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionOptions:
    """local: hold every expert in this process instead of dispatching to expert actors.

    max_queue: most sequences that wait. cache_tokens: None, on a GPU: as many as it has room for.
    """

    local: bool
    context_tokens: int
    cache_tokens: int | None
    chunk_tokens: int
    max_sequences: int
    prefix_cache: bool
    max_queue: int
    micro_batches: MicroBatches
    answer_timeout_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsRead:
    """How much came from files, and its checksum (model/reader.py)."""

    bytes_read: int
    checksum: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """Where a loaded actor listens, and what it read (model/checkpoint.py's checksum).

    metrics_port: of its HTTP listener for Prometheus, on the same host. digests: of each expert that was
    read.
    """

    host: str
    port: int
    metrics_port: int
    pid: int
    bytes_read: int
    checksum: str
    digests: Mapping[Pair, int] = field(default_factory=dict)
