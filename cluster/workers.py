"""The actors as Ray runs them.

Thin: each builds a server of actors/ and blocks in `run` until the end. A call of `pulse` is always pending:
Ray fails it within milliseconds of a death, and no answer in time means a hang. `max_restarts=0` always: an
actor that may restart hides its death for seconds. Detached, so that they outlive the controller, which finds
them again by name. torch is imported where the weights are, not where these classes are named.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import ray

from actors.options import ActorOptions, AttentionOptions, Loaded
from router.view import View

NAMESPACE = "shoal"
CONCURRENCY_GROUPS = {"ctl": 2, "pulse": 2}
PULSE_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """A sign of life. convicted: (actor id, incarnation) of experts that it caught sending rubbish."""

    is_serving: bool
    convicted: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Introduction:
    """What an actor that serves tells a controller that is new. epoch: of the newest view that it knows."""

    loaded: Loaded
    epoch: int


class _Worker:
    """What both kinds share. `_server` and `_loaded` exist once `load` has returned."""

    def __init__(self, options: ActorOptions) -> None:
        self._options = options
        self._server: Any = None
        self._loaded: Loaded | None = None
        self._ended = threading.Event()
        self._progress = (0, 0, 0.0)

    def run(self) -> None:
        """Serve until stopped; returning or dying ends this life."""
        try:
            self._server.run()
        finally:
            self._ended.set()

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> Pulse:
        """Answers after PULSE_S, or at once when `run` has ended."""
        is_serving = not self._ended.wait(PULSE_S)
        return Pulse(is_serving=is_serving, convicted=self._server.convicted)

    @ray.method(concurrency_group="ctl")
    def introduce(self) -> Introduction | None:
        """None: it does not serve."""
        if self._loaded is None or self._ended.is_set():
            return None
        return Introduction(loaded=self._loaded, epoch=self._server.epoch)

    @ray.method(concurrency_group="ctl")
    def ping(self) -> int:
        """The process id."""
        return os.getpid()

    @ray.method(concurrency_group="ctl")
    def progress(self) -> tuple[int, int, float]:
        """(bytes read, bytes in all, seconds) of the load."""
        return self._progress

    @ray.method(concurrency_group="ctl")
    def stop(self) -> None:
        self._server.stop()

    @ray.method(concurrency_group="ctl")
    def stats(self) -> dict[str, float]:
        """Counters since birth."""
        stats: dict[str, float] = self._server.stats()
        return stats

    def _note(self, progress: Any) -> None:
        self._progress = (progress.bytes_read, progress.bytes_total, progress.seconds)


class ExpertWorker(_Worker):
    """An expert actor."""

    def load(self, experts: tuple[int, ...]) -> Loaded:
        """Read the experts and start to listen; raises CheckpointError."""
        from actors.build import build_expert

        _one_thread()
        self._server, self._loaded = build_expert(self._options, experts, self._note)
        return self._loaded

    @ray.method(concurrency_group="ctl")
    def spoil(self) -> None:
        """For fault tests: from now on the weights are not numbers."""
        self._server.spoil()


class AttentionWorker(_Worker):
    """An attention actor."""

    def load(self, attention: AttentionOptions, view: bytes | None) -> Loaded:
        """Read what an attention actor owns and start to listen; raises CheckpointError."""
        from actors.build import build_attention

        _one_thread()
        known = None if view is None else View.from_bytes(view)
        self._server, self._loaded = build_attention(self._options, attention, known, self._note)
        return self._loaded

    @ray.method(concurrency_group="ctl")
    def set_view(self, view: bytes) -> None:
        """A newer view, adopted at the next step (or now, if a step is parked)."""
        self._server.set_view(View.from_bytes(view))


def remote_class(kind: type) -> Any:
    """`kind` as a Ray actor class whose `ctl` methods answer beside its loop."""
    decorate: Any = ray.remote
    return decorate(concurrency_groups=CONCURRENCY_GROUPS, num_cpus=0, max_restarts=0, max_task_retries=0)(
        kind
    )


def spawn(kind: type, options: ActorOptions) -> Any:
    """Start an actor process; returns its handle at once."""
    name = f"{options.actor_id}/{options.incarnation}"
    return remote_class(kind).options(name=name, namespace=NAMESPACE, lifetime="detached").remote(options)


def _one_thread() -> None:
    """torch with one thread: a second one per actor only fights the other actors for the same cores."""
    import torch

    torch.set_num_threads(1)
