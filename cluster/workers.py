"""The actor process.

Thin: builds a server of actors/ and blocks in `run` until the end. Becomes an expert or an attention actor
when it loads, so that one that waits, warm, can take either's place. torch is imported where the weights are,
not where this class is named. Knows nothing of how it is spawned.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from actors.options import ActorOptions, AttentionOptions, ExpertOrder, Loaded, Taken
from cluster.hosts import HERE
from cluster.processes import Introduction, Pulse, beside
from model.config import ModelConfig
from router.view import Pair, View

T = TypeVar("T")

PULSE_S = 0.5
POLITE = 10  # niceness
LONGEST_PAUSE_S = 0.1


class Worker:
    """`_options`, `_server` and `_loaded` exist once it has loaded.

    node_address: of the node that it is on, to be called there.
    """

    def __init__(self, node_address: Callable[[], str]) -> None:
        self._node_address = node_address
        self._options: Any = None
        self._server: Any = None
        self._loaded: Loaded | None = None
        self._is_standby = False
        self._is_running = False
        self._ended = threading.Event()
        self._progress = (0, 0, 0.0)

    def warm(self) -> None:
        """Import what every load needs: most of the time that a new process takes."""
        _politely(lambda: importlib.import_module("actors.build"))
        self._is_standby = True

    def load_expert(self, options: ActorOptions, config: ModelConfig, order: ExpertOrder) -> Loaded:
        """Take the experts and start to listen; raises CheckpointError."""
        from actors.build import build_expert

        self._is_standby = False
        _one_thread()
        options = self._bound_here(options)
        load = _at_once if options.is_urgent else _politely
        self._server, loaded = load(lambda: build_expert(options, config, order, self._note))
        self._options, self._loaded = options, loaded
        return loaded

    @beside("load")
    def take(self, order: ExpertOrder) -> Taken:
        """To an expert actor that serves: take more; raises CheckpointError and holds what it has taken."""
        from actors.build import take_experts

        return take_experts(self._server, self._options, order, _with_pauses(self._note))

    @beside("load")
    def drop(self, pairs: frozenset[Pair]) -> None:
        """To an expert actor that serves: hold these no more."""
        self._server.drop(pairs)

    def load_attention(
        self, options: ActorOptions, attention: AttentionOptions, view: bytes | None, checksum: str
    ) -> Loaded:
        """Read what an attention actor owns and start to listen; raises CheckpointError.

        checksum: of what others have read, if any have.
        """
        from actors.build import build_attention

        self._is_standby = False
        _one_thread()
        options = self._bound_here(options)
        known = None if view is None else View.from_bytes(view)
        load = _at_once if options.is_urgent or options.device != "cpu" else _politely
        self._server, loaded = load(lambda: build_attention(options, attention, known, checksum, self._note))
        self._options, self._loaded = options, loaded
        return loaded

    def run(self) -> None:
        """Serve until stopped; returning or dying ends this life."""
        self._is_running = True
        try:
            self._server.run()
        finally:
            self._ended.set()

    @beside("pulse")
    def pulse(self) -> Pulse:
        """Answers after PULSE_S, or at once when `run` has ended."""
        has_ended = self._ended.wait(PULSE_S)
        if self._loaded is None:
            return Pulse(has_ended=has_ended, epoch=0, convicted=())
        server = self._server
        return Pulse(
            has_ended=has_ended,
            epoch=server.epoch_in_use,
            convicted=server.convicted,
            num_sequences=server.num_sequences,
            is_handing_over=server.is_handing_over,
        )

    @beside("ctl")
    def introduce(self) -> Introduction | None:
        """None: it is in between, or has ended."""
        if self._is_standby:
            return Introduction()
        if self._loaded is None or not self._is_running or self._ended.is_set():
            return None  # also if it has loaded, but was never told to run: the controller died in between
        return Introduction(
            actor_id=self._options.actor_id,
            loaded=self._loaded,
            epoch=self._server.epoch,
            pairs=self._server.pairs,
            digests=self._server.digests,
        )

    @beside("ctl")
    def progress(self) -> tuple[int, int, float]:
        """(bytes read, bytes in all, seconds) of the load."""
        return self._progress

    @beside("ctl")
    def set_view(self, view: bytes) -> None:
        """To an attention actor: a newer view, adopted at the next step (or now, if a step is parked)."""
        self._server.set_view(View.from_bytes(view))

    @beside("ctl")
    def stats(self) -> dict[str, float]:
        """Counters since birth."""
        stats: dict[str, float] = self._server.stats()
        return stats

    @beside("ctl")
    def expert_pairs(self) -> list[list[int]]:
        """Of an attention actor: [L][E] pairs (token, expert) since birth."""
        pairs: list[list[int]] = self._server.expert_pairs().tolist()
        return pairs

    @beside("trace")
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
        return self._options.actor_id, recorder.spans

    @beside("ctl")
    def spoil(self) -> None:
        """For fault tests, to an expert actor: from now on its weights are not numbers."""
        self._server.spoil()

    @beside("ctl")
    def arm(self, point: str, passes: int) -> None:
        """For fault tests: it ends at a point of actors/fault_points.py; raises ValueError."""
        self._server.arm(point, passes)

    @beside("ctl")
    def poison(self, seed: int) -> None:
        """For fault tests, to an attention actor: from now on it dies of sequences of this seed."""
        self._server.poison(seed)

    def _bound_here(self, options: ActorOptions) -> ActorOptions:
        return replace(options, host=self._node_address()) if options.host == HERE else options

    def _note(self, progress: Any) -> None:
        self._progress = (progress.bytes_read, progress.bytes_total, progress.seconds)


def _politely(work: Callable[[], T]) -> T:
    """With a low priority: who serves comes first. On a thread of its own: no thread gets its own back."""
    with ThreadPoolExecutor(1, initializer=_step_back) as pool:
        return pool.submit(work).result()


def _at_once(work: Callable[[], T]) -> T:
    return work()


def _with_pauses(note: Callable[[Any], None]) -> Callable[[Any], None]:
    """`note` of a load, and after each piece a pause as long as that took: the process serves meanwhile.

    A low priority would not do there: whoever holds the interpreter keeps the others of its process waiting.
    """
    since_s = time.monotonic()

    def paused(progress: Any) -> None:
        nonlocal since_s
        note(progress)
        time.sleep(min(LONGEST_PAUSE_S, time.monotonic() - since_s))
        since_s = time.monotonic()

    return paused


def _step_back() -> None:
    with suppress(OSError):  # where threads have no priorities
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), POLITE)


def _one_thread() -> None:
    """torch with one thread: a second one per actor only fights the other actors for the same cores."""
    import torch

    torch.set_num_threads(1)
