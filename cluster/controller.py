"""The controller: keeps the actors alive and the view true.

Spawns the actors a spec asks for, publishes views, and replaces from the checkpoint whatever dies or hangs.
The data plane streams on without it: its own next life finds the living by name and asks them what it must
know. Knows nothing of tensors or requests.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from actors.options import ActorOptions, AttentionOptions
from cluster.life import Life, hang_s
from cluster.member import Member
from cluster.places import seat_for
from cluster.workers import Greeting, Introduction, living, spawn
from model.config import ModelConfig
from router.view import ActorId, ExpertActor, View, even_placement, make_view

logger = logging.getLogger(__name__)

WATCH_POLL_S = 0.2
FAULT = 70  # exit status
PRESENT_S = 5.0  # an ingress asks twice a second
EVENTS_KEPT = 1000
INTRODUCTION_S = 10.0  # for all the living to say who they are, on a machine that is busy with a death


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to keep alive. Attention options are alike for all; experts are placed evenly.

    standbys: processes that wait, warm, to take the place of what dies. has_seats: a process starts only on a
    node with a seat for its kind (cluster/places.py), so none may wait for any part.
    """

    directory: str
    dtype: str
    data_host: str
    num_attention: int
    num_experts: int
    replicas_per_expert: int
    standbys: int
    draft_tokens: int
    has_seats: bool
    attention: AttentionOptions


class Controller:
    """A named Ray actor: `run` is its loop, everything else answers from other threads.

    Born, or born again, it takes over the actors that live before it answers anybody.
    """

    def __init__(
        self, plan: Plan, config: ModelConfig, token: bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._config, self._token, self._clock = plan, config, token, clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._epoch = 0
        self._num_lives = 0
        self._greeted: dict[Greeting, float] = {}
        self._standbys: list[Life] = []
        self._events: deque[tuple[float, str]] = deque(maxlen=EVENTS_KEPT)
        self._attention = [Member(f"attention-{i}", None) for i in range(plan.num_attention)]
        placement = (
            even_placement(config.num_experts, plan.num_experts, plan.replicas_per_expert)
            if plan.num_experts
            else []
        )
        self._experts = [Member(f"expert-{i}", held) for i, held in enumerate(placement)]
        self._adopt_living()

    def run(self) -> None:
        """Keep every member alive until stopped. A fault of ours ends the process; Ray starts another."""
        try:
            self._watch()
        finally:
            if not self._stopping.is_set():
                logger.critical("the controller ends by a fault of its own", exc_info=sys.exc_info()[1])
                os._exit(FAULT)
        for life in self._lives():
            ray.kill(life.handle)

    @ray.method(concurrency_group="ctl")
    def stop(self) -> None:
        self._stopping.set()

    @ray.method(concurrency_group="ctl")
    def endpoints(self, greeting: Greeting | None = None) -> list[tuple[str, str, int]]:
        """(actor id, host, port) of every attention actor that serves."""
        with self._lock:
            if greeting is not None:
                self._greeted[greeting] = self._clock()
            return [
                (m.actor_id, m.loaded.host, m.loaded.port)
                for m in self._attention
                if m.is_active and m.loaded
            ]

    @ray.method(concurrency_group="ctl")
    def status(self) -> dict[str, Any]:
        """What the command line shows: every member, the epoch, whether all serve, what happened and when."""
        with self._lock:
            members = list(self._members())
            return {
                "pid": os.getpid(),
                "epoch": self._epoch,
                "ingresses": [(g.identity, g.host, g.metrics_port) for g in self._present()],
                "first_layer": self._config.num_dense_layers,
                "ready": all(member.is_active for member in members),
                "standbys": sum(not life.is_busy() for life in self._standbys),
                "failed": [f"{m.actor_id}: {m.gave_up}" for m in members if m.gave_up],
                "events": list(self._events),
                "members": [member.describe() for member in members],
            }

    @ray.method(concurrency_group="ctl")
    def stats(self) -> dict[str, Any]:
        """By actor id, the answer to come of every actor that serves."""
        with self._lock:
            return {m.actor_id: m.life.handle.stats.remote() for m in self._members() if m.life and m.loaded}

    @ray.method(concurrency_group="ctl")
    def expert_pairs(self) -> dict[str, Any]:
        """By actor id, the answer to come of every attention actor that serves (Worker.expert_pairs)."""
        with self._lock:
            active = [m for m in self._attention if m.life and m.loaded]
            return {m.actor_id: m.life.handle.expert_pairs.remote() for m in active if m.life}

    @ray.method(concurrency_group="ctl")
    def plan(self) -> Plan:
        """What it keeps alive."""
        return self._plan

    @ray.method(concurrency_group="ctl")
    def view(self) -> bytes:
        with self._lock:
            return self._make_view().to_bytes()

    @ray.method(concurrency_group="ctl")
    def spoil(self, actor_id: str) -> None:
        """For fault tests: make an expert actor answer rubbish."""
        with self._lock:
            [life] = [m.life for m in self._experts if m.actor_id == actor_id and m.life and m.loaded]
            life.handle.spoil.remote()

    def _present(self) -> list[Greeting]:
        """The ingresses that have asked of late."""
        now_s = self._clock()
        self._greeted = {who: at_s for who, at_s in self._greeted.items() if at_s > now_s - PRESENT_S}
        return sorted(self._greeted, key=lambda greeting: greeting.identity)

    def _watch(self) -> None:
        checked_s = self._clock()
        while not self._stopping.is_set():
            with self._lock:
                now_s = self._clock()
                self._advance(now_s, now_s - checked_s)
                checked_s = now_s
            self._wait()

    def _members(self) -> Iterator[Member]:
        yield from self._experts
        yield from self._attention

    def _lives(self) -> Iterator[Life]:
        yield from (member.life for member in self._members() if member.life)
        yield from self._standbys

    def _adopt_living(self) -> None:
        """Take over the actors that an earlier life of this controller left."""
        named = {member.actor_id: member for member in self._members()}
        asked = [(number, handle, handle.introduce.remote()) for number, handle in living()]
        if answers := [answer for _, _, answer in asked]:
            ray.wait(answers, num_returns=len(answers), timeout=INTRODUCTION_S)
        for number, handle, answer in asked:
            self._num_lives = max(self._num_lives, number)
            life, introduction = Life(number, handle), _introduction(answer)
            member = named.pop(introduction.actor_id, None) if introduction else None
            if introduction and introduction.loaded and member:
                member.adopt(life, introduction.loaded)
                self._epoch = max(self._epoch, introduction.epoch)
            elif introduction and not introduction.loaded:
                self._standbys.append(life)
            else:  # it starts, loads or hangs: a new one is as good
                life.end()
        if asked:
            adopted = [member.actor_id for member in self._members() if member.is_active]
            self._note(f"controller again in charge of {', '.join(adopted) or 'nobody'}")
            self._publish()

    def _advance(self, now_s: float, listened_s: float) -> None:
        """Notice what has loaded and what has died; publish if the set of serving experts changed."""
        serving = self._serving()
        patience_s = hang_s(sum(life.is_late for life in self._lives()))
        for member in self._members():
            if member.check_load(now_s, self._note) and member.experts is None and self._experts:
                self._send_view(member)  # it may have loaded under a view that is old by now
            pulse = member.check_life(now_s, listened_s, patience_s, self._note)
            for convicted in pulse.convicted if pulse else ():
                self._end_convicted(now_s, *convicted)
        if self._serving() != serving:
            self._publish()
        for member in self._members():
            if member.is_due(now_s):
                member.life = self._next_life(member)
            if member.life and not member.loaded and not member.loading and not member.gave_up:
                self._load(member, member.life)
        self._keep_standbys(listened_s, patience_s)

    def _keep_standbys(self, listened_s: float, patience_s: float) -> None:
        """Replace those that are over; new ones only while nobody is waited for: to warm up takes a core."""
        for life in list(self._standbys):
            if isinstance(life.check(listened_s, patience_s), str):
                life.end()
                self._standbys.remove(life)
        if len(self._standbys) < self._plan.standbys and all(m.is_active for m in self._members()):
            life = self._new_life(None)
            life.do(life.handle.warm.remote())
            self._standbys.append(life)

    def _next_life(self, member: Member) -> Life:
        """A warm one; one that warms up, politely, would take longer than a new one."""
        warm = [life for life in self._standbys if not life.is_busy()]
        if not warm:
            return self._new_life(seat_for(member.kind) if self._plan.has_seats else None)
        self._standbys.remove(warm[0])
        return warm[0]

    def _new_life(self, seat: str | None) -> Life:
        self._num_lives += 1
        return Life(self._num_lives, spawn(self._num_lives, seat), waits=seat is not None)

    def _end_convicted(self, now_s: float, actor_id: str, incarnation: int) -> None:
        for member in self._experts:
            if (member.actor_id, member.incarnation) == (actor_id, incarnation) and member.is_active:
                member.end(now_s, self._note, "answered rubbish")

    def _serving(self) -> list[tuple[str, int]]:
        return [(member.actor_id, member.incarnation) for member in self._experts if member.is_active]

    def _load(self, member: Member, life: Life) -> None:
        """Tell a life what to be; an attention actor, only when there are experts to dispatch to."""
        options = ActorOptions(
            actor_id=member.actor_id,
            incarnation=life.number,
            directory=self._plan.directory,
            dtype=self._plan.dtype,
            host=self._plan.data_host,
            token=self._token,
            draft_tokens=self._plan.draft_tokens,
        )
        if member.experts is not None:
            member.loading = life.do(life.handle.load_expert.remote(options, member.experts))
        elif all(expert.has_served for expert in self._experts):
            view = self._make_view().to_bytes() if self._experts else None
            load = life.handle.load_attention.remote(options, self._plan.attention, view)
            member.loading = life.do(load)

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
        for member in self._attention:
            self._send_view(member)

    def _send_view(self, member: Member) -> None:
        if member.life and member.loaded:
            member.life.handle.set_view.remote(self._make_view().to_bytes())

    def _wait(self) -> None:
        """Until something loads or dies, or a moment passes."""
        loading = [member.loading for member in self._members() if member.loading is not None]
        pending = [*loading, *(life.pulse for life in self._lives())]
        if pending:
            ray.wait(pending, num_returns=1, timeout=WATCH_POLL_S, fetch_local=False)
        else:
            time.sleep(WATCH_POLL_S)

    def _note(self, text: str) -> None:
        logger.warning("%s", text)
        self._events.append((self._clock(), text))


def _introduction(asked: Any) -> Introduction | None:
    """None: it does not serve, or does not answer."""
    try:
        introduction: Introduction | None = ray.get(asked, timeout=0)
    except ray.exceptions.RayError:
        return None
    return introduction
