"""The controller: keeps the actors alive and the view true.

Spawns the actors a spec asks for, publishes views, and replaces whatever dies from the checkpoint. The data
plane streams on without it. Knows nothing of tensors or requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from actors.options import ActorOptions, AttentionOptions, Loaded
from cluster.workers import AttentionWorker, ExpertWorker, spawn
from model.config import ModelConfig
from router.view import ActorId, ExpertActor, View, even_placement, make_view

logger = logging.getLogger(__name__)

WATCH_POLL_S = 0.2
MAX_DEATHS = 5  # of one actor within DEATH_WINDOW_S: then it is left dead and said so
DEATH_WINDOW_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to keep alive. Attention options are alike for all; experts are placed evenly."""

    directory: str
    dtype: str
    data_host: str
    num_attention: int
    num_experts: int
    replicas_per_expert: int
    draft_tokens: int
    attention: AttentionOptions


@dataclass(slots=True)
class Member:
    """One data-plane actor over all its lives. `experts` is None for an attention actor."""

    actor_id: str
    experts: tuple[int, ...] | None
    incarnation: int = 0
    handle: Any = None
    loading: Any = None
    running: Any = None
    loaded: Loaded | None = None
    deaths_s: deque[float] = field(default_factory=deque)
    gave_up: str | None = None

    @property
    def is_active(self) -> bool:
        return self.running is not None


class Controller:
    """A named Ray actor: `run` is its loop, everything else answers from other threads."""

    def __init__(
        self, plan: Plan, config: ModelConfig, token: bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._config, self._token, self._clock = plan, config, token, clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._epoch = 0
        self._events: list[str] = []
        self._attention = [Member(f"attention-{i}", None) for i in range(plan.num_attention)]
        placement = (
            even_placement(config.num_experts, plan.num_experts, plan.replicas_per_expert)
            if plan.num_experts
            else []
        )
        self._experts = [Member(f"expert-{i}", held) for i, held in enumerate(placement)]

    def run(self) -> None:
        """Keep every member alive until stopped."""
        for member in [*self._experts, *self._attention]:
            self._spawn(member)
        while not self._stopping.is_set():
            with self._lock:
                self._advance()
            self._wait()
        for member in [*self._attention, *self._experts]:
            if member.handle is not None:
                ray.kill(member.handle)

    @ray.method(concurrency_group="ctl")
    def stop(self) -> None:
        self._stopping.set()

    @ray.method(concurrency_group="ctl")
    def endpoints(self) -> list[tuple[str, str, int]]:
        """(actor id, host, port) of every attention actor that serves."""
        with self._lock:
            return [
                (m.actor_id, m.loaded.host, m.loaded.port)
                for m in self._attention
                if m.is_active and m.loaded
            ]

    @ray.method(concurrency_group="ctl")
    def status(self) -> dict[str, Any]:
        """What the command line shows: every member, the epoch, whether all serve, what happened since."""
        with self._lock:
            members = [*self._attention, *self._experts]
            return {
                "epoch": self._epoch,
                "ready": all(member.is_active for member in members),
                "failed": [f"{m.actor_id}: {m.gave_up}" for m in members if m.gave_up],
                "events": list(self._events),
                "members": [self._describe(member) for member in members],
            }

    @ray.method(concurrency_group="ctl")
    def stats(self) -> dict[str, Any]:
        """By actor id, the answer to come of every actor that serves."""
        with self._lock:
            members = [*self._attention, *self._experts]
            return {m.actor_id: m.handle.stats.remote() for m in members if m.is_active}

    @ray.method(concurrency_group="ctl")
    def view(self) -> bytes:
        with self._lock:
            return self._make_view().to_bytes()

    def _advance(self) -> None:
        """Notice what has loaded and what has died; publish if the set of serving experts changed."""
        serving = self._serving()
        for member in [*self._experts, *self._attention]:
            self._check_load(member)
            self._check_life(member)
        if self._serving() != serving:
            self._publish()
        if all(member.is_active for member in self._experts) or not self._experts:
            for member in self._attention:
                if member.loading is None and member.running is None and member.gave_up is None:
                    self._load_attention(member)

    def _serving(self) -> list[tuple[str, int]]:
        return [(member.actor_id, member.incarnation) for member in self._experts if member.is_active]

    def _spawn(self, member: Member) -> None:
        """A new life for a member."""
        member.incarnation += 1
        member.running = member.loading = member.loaded = None
        options = ActorOptions(
            actor_id=member.actor_id,
            incarnation=member.incarnation,
            directory=self._plan.directory,
            dtype=self._plan.dtype,
            host=self._plan.data_host,
            token=self._token,
            draft_tokens=self._plan.draft_tokens,
        )
        if member.experts is not None:
            member.handle = spawn(ExpertWorker, options)
            member.loading = member.handle.load.remote(member.experts)
        else:
            member.handle = spawn(AttentionWorker, options)

    def _load_attention(self, member: Member) -> None:
        view = self._make_view().to_bytes() if self._experts else None
        member.loading = member.handle.load.remote(self._plan.attention, view)

    def _check_load(self, member: Member) -> None:
        if member.loading is None or not _is_done(member.loading):
            return
        loading, member.loading = member.loading, None
        try:
            member.loaded = ray.get(loading)
        except ray.exceptions.RayTaskError as error:
            member.gave_up = str(error.cause)  # the checkpoint cannot be read: another try would end the same
            self._note(f"{member.actor_id} cannot load: {error.cause}")
            return
        except ray.exceptions.RayActorError:
            self._bury(member)
            return
        member.running = member.handle.run.remote()
        self._note(f"{member.actor_id} serves (incarnation {member.incarnation})")
        if member.experts is None and self._experts:  # it may have loaded under a view that is old by now
            member.handle.set_view.remote(self._make_view().to_bytes())

    def _check_life(self, member: Member) -> None:
        if member.running is not None and _is_done(member.running):
            self._bury(member)

    def _bury(self, member: Member) -> None:
        """A member died: start its next life, unless it keeps dying."""
        now_s = self._clock()
        self._note(f"{member.actor_id} died (incarnation {member.incarnation})")
        member.deaths_s.append(now_s)
        while member.deaths_s and member.deaths_s[0] < now_s - DEATH_WINDOW_S:
            member.deaths_s.popleft()
        if len(member.deaths_s) >= MAX_DEATHS:
            member.running = member.loading = member.loaded = None
            member.gave_up = f"died {MAX_DEATHS} times within {DEATH_WINDOW_S:g} s"
            self._note(f"{member.actor_id} left dead: {member.gave_up}")
            return
        self._spawn(member)

    def _make_view(self) -> View:
        active = [m for m in self._experts if m.is_active and m.loaded]
        actors = [
            ExpertActor(
                actor_id=ActorId(m.actor_id),
                incarnation=m.incarnation,
                host=m.loaded.host,
                port=m.loaded.port,
            )
            for m in active
            if m.loaded
        ]
        return make_view(
            self._epoch,
            actors,
            {ActorId(m.actor_id): m.experts or () for m in active},
            num_experts=self._config.num_experts,
            first_layer=self._config.num_dense_layers,
            num_layers=len(self._config.routed_layers),
        )

    def _publish(self) -> None:
        self._epoch += 1
        view = self._make_view().to_bytes()
        for member in self._attention:
            if member.is_active:
                member.handle.set_view.remote(view)

    def _wait(self) -> None:
        """Until something loads or dies, or a moment passes."""
        pending = [
            r for m in [*self._experts, *self._attention] for r in (m.loading, m.running) if r is not None
        ]
        if pending:
            ray.wait(pending, num_returns=1, timeout=WATCH_POLL_S, fetch_local=False)
        else:
            time.sleep(WATCH_POLL_S)

    def _describe(self, member: Member) -> dict[str, Any]:
        progress = None
        if member.handle is not None and not member.is_active and member.gave_up is None:
            progress = member.handle.progress.remote()
        return {
            "actor_id": member.actor_id,
            "kind": "attention" if member.experts is None else "expert",
            "incarnation": member.incarnation,
            "active": member.is_active,
            "pid": member.loaded.pid if member.loaded else None,
            "experts": None if member.experts is None else len(member.experts),
            "bytes_read": member.loaded.bytes_read if member.loaded else None,
            "checksum": member.loaded.checksum if member.loaded else None,
            "progress": progress,
        }

    def _note(self, text: str) -> None:
        logger.warning("%s", text)
        self._events.append(text)


def _is_done(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])
