"""The actor process as Ray runs it.

Thin: builds a server of actors/ and blocks in `run` until the end. Becomes an expert or an attention actor
when it loads, so that one that waits, warm, can take either's place. `max_restarts=0` always: an actor that
may restart hides its death for seconds. Detached, so that it outlives the controller, which finds it again by
name. torch is imported where the weights are, not where this class is named.
"""

from __future__ import annotations

import importlib
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray

from actors.options import ActorOptions, AttentionOptions, Loaded
from cluster.places import HERE
from router.view import View

NAMESPACE = "shoal"
NAME = "life"
CONCURRENCY_GROUPS = {"ctl": 2, "pulse": 2}
PULSE_S = 0.5
POLITE = 10  # niceness


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """A sign of life. has_ended: there is nothing more to come, though the process lives.

    convicted: (actor id, incarnation) of experts that it caught sending rubbish.
    """

    has_ended: bool
    convicted: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Introduction:
    """What an actor tells a controller that is new. epoch: of the newest view that it knows.

    loaded: None if it has nothing, and is warm.
    """

    actor_id: str = ""
    loaded: Loaded | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Greeting:
    """What an ingress tells the controller each time it asks: who it is, and where its metrics are."""

    identity: str
    host: str
    metrics_port: int


class Worker:
    """`_server` and `_loaded` exist once it has loaded."""

    def __init__(self) -> None:
        self._actor_id = ""
        self._server: Any = None
        self._loaded: Loaded | None = None
        self._is_standby = False
        self._is_running = False
        self._ended = threading.Event()
        self._progress = (0, 0, 0.0)

    def warm(self) -> None:
        """Import what every load needs: most of the time that a new process takes."""
        thread = threading.Thread(target=_import_politely)
        thread.start()
        thread.join()
        importlib.import_module("actors.build")  # if it failed there, it fails here, where somebody is told
        self._is_standby = True

    def load_expert(self, options: ActorOptions, experts: tuple[int, ...]) -> Loaded:
        """Read the experts and start to listen; raises CheckpointError."""
        from actors.build import build_expert

        self._is_standby = False
        _one_thread()
        options = replace(options, host=host_here(options.host))
        self._server, loaded = build_expert(options, experts, self._note)
        self._actor_id, self._loaded = options.actor_id, loaded
        return loaded

    def load_attention(
        self, options: ActorOptions, attention: AttentionOptions, view: bytes | None
    ) -> Loaded:
        """Read what an attention actor owns and start to listen; raises CheckpointError."""
        from actors.build import build_attention

        self._is_standby = False
        _one_thread()
        options = replace(options, host=host_here(options.host))
        known = None if view is None else View.from_bytes(view)
        self._server, loaded = build_attention(options, attention, known, self._note)
        self._actor_id, self._loaded = options.actor_id, loaded
        return loaded

    def run(self) -> None:
        """Serve until stopped; returning or dying ends this life."""
        self._is_running = True
        try:
            self._server.run()
        finally:
            self._ended.set()

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> Pulse:
        """Answers after PULSE_S, or at once when `run` has ended."""
        has_ended = self._ended.wait(PULSE_S)
        return Pulse(has_ended=has_ended, convicted=self._server.convicted if self._loaded else ())

    @ray.method(concurrency_group="ctl")
    def introduce(self) -> Introduction | None:
        """None: it is in between, or has ended."""
        if self._is_standby:
            return Introduction()
        if self._loaded is None or not self._is_running or self._ended.is_set():
            return None  # also if it has loaded, but was never told to run: the controller died in between
        return Introduction(actor_id=self._actor_id, loaded=self._loaded, epoch=self._server.epoch)

    @ray.method(concurrency_group="ctl")
    def progress(self) -> tuple[int, int, float]:
        """(bytes read, bytes in all, seconds) of the load."""
        return self._progress

    @ray.method(concurrency_group="ctl")
    def set_view(self, view: bytes) -> None:
        """To an attention actor: a newer view, adopted at the next step (or now, if a step is parked)."""
        self._server.set_view(View.from_bytes(view))

    @ray.method(concurrency_group="ctl")
    def stats(self) -> dict[str, float]:
        """Counters since birth."""
        stats: dict[str, float] = self._server.stats()
        return stats

    @ray.method(concurrency_group="ctl")
    def expert_pairs(self) -> list[list[int]]:
        """Of an attention actor: [L][E] pairs (token, expert) since birth."""
        pairs: list[list[int]] = self._server.expert_pairs().tolist()
        return pairs

    @ray.method(concurrency_group="ctl")
    def trace(self, steps: int, seconds: float) -> tuple[str, list[Any]] | None:
        """Its id and the spans (actors/trace.py) of its next steps, of those that fall within the time."""
        if self._loaded is None or not self._is_running:
            return None
        from actors.trace import Recorder

        recorder = Recorder(steps)
        self._server.record(recorder)
        try:
            recorder.done.wait(seconds)
        finally:
            self._server.record(None)
        return self._actor_id, recorder.spans

    @ray.method(concurrency_group="ctl")
    def spoil(self) -> None:
        """For fault tests, to an expert actor: from now on its weights are not numbers."""
        self._server.spoil()

    def _note(self, progress: Any) -> None:
        self._progress = (progress.bytes_read, progress.bytes_total, progress.seconds)


def remote_class(kind: type) -> Any:
    """`kind` as a Ray actor class whose `ctl` methods answer beside its loop."""
    decorate: Any = ray.remote
    return decorate(concurrency_groups=CONCURRENCY_GROUPS, num_cpus=0, max_restarts=0, max_task_retries=0)(
        kind
    )


def spawn(number: int, seat: str | None = None) -> Any:
    """Start an actor process; returns its handle at once. seat: it waits for a node that has one free."""
    named = remote_class(Worker).options(
        name=f"{NAME}/{number}",
        namespace=NAMESPACE,
        lifetime="detached",
        resources={seat: 1} if seat else None,
    )
    return named.remote()


def host_here(host: str) -> str:
    """An address to bind to."""
    own_address: Any = ray.util.get_node_ip_address
    return str(own_address()) if host == HERE else host


def living() -> list[tuple[int, Any]]:
    """The number and handle of every actor that was ever spawned and has not ended."""
    found = []
    for name in ray.util.list_named_actors():
        prefix, _, number = name.partition("/")
        if prefix == NAME:
            with suppress(ValueError):  # it died since
                found.append((int(number), ray.get_actor(name)))
    return found


def _import_politely() -> None:
    """With this thread's priority: who serves comes first. A process could not take its own back."""
    with suppress(OSError):  # where threads have no priorities
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), POLITE)
    importlib.import_module("actors.build")


def _one_thread() -> None:
    """torch with one thread: a second one per actor only fights the other actors for the same cores."""
    import torch

    torch.set_num_threads(1)
