"""The controller: keeps the fleet, answers whoever asks.

A named actor: `run` is its loop, everything else answers from other threads as soon as the fleet is in hand.
Whatever goes wrong in it ends the process, and another is started in its place: the data plane streams on
without it. Knows nothing of tensors or requests.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from actors.fault_points import arm
from cluster.autoscale import Autoscaler
from cluster.fleet import Fleet
from cluster.governor import Governor
from cluster.orders import Arguments, obey
from cluster.plan import Plan
from cluster.processes import Greeting, Memory, ProcessDied, Processes, beside
from cluster.rebalance import Rebalancer
from cluster.term import Term
from model.config import ModelConfig

logger = logging.getLogger(__name__)

WATCH_POLL_S = 0.2
FAULT, RENEWED = 70, 75  # exit status
FAULT_PAUSE_S = 1.0  # one that comes again at once should not take the machine
ARM_S = 5.0
PRESENT_S = 5.0  # an ingress asks twice a second
REQUESTS_KEPT = 100
CONTROLLER = "controller"  # among the names of actors


class Controller:
    """To be born does nothing that can fail: an actor whose birth fails is never begun again.

    exit: ends this process.
    """

    def __init__(
        self,
        plan: Plan,
        config: ModelConfig,
        token: bytes,
        processes: Processes,
        memory: Memory,
        clock: Callable[[], float] = time.monotonic,
        exit: Callable[[int], None] = os._exit,
    ) -> None:
        def take_over() -> Fleet:
            return Fleet(plan, config, token, processes=processes, memory=memory, clock=clock)

        self._plan, self._take_over = plan, take_over
        self._governor = Governor(Rebalancer(plan.rebalance_s), Autoscaler(plan.autoscale))
        self._processes, self._clock, self._exit = processes, clock, exit
        self._lock = threading.Lock()
        self._is_in_hand = threading.Event()
        self._stopping = threading.Event()
        self._greeted: dict[Greeting, float] = {}
        self._requests: deque[dict[str, Any]] = deque(maxlen=REQUESTS_KEPT)

    def run(self) -> None:
        """Keep every member alive until stopped. Who asks again waits: Ray repeats it in the next life."""
        if self._stopping.is_set():
            return
        try:
            self._watch()
        except (
            Exception
        ):  # whatever it is: a controller that stood still would keep its name, an ended one is begun again
            logger.critical("the controller ends by a fault of its own", exc_info=True)
            time.sleep(FAULT_PAUSE_S)
            self._exit(FAULT)

    def _watch(self) -> None:
        self._fleet = self._take_over()
        checked_s = self._clock()
        while not self._stopping.is_set():
            with self._lock:
                now_s = self._clock()
                self._fleet.advance(now_s, now_s - checked_s, self._heard_by_all_s(now_s))
                checked_s = now_s
                self._governor.look(self._fleet, now_s)
                if self._fleet.is_renewed:
                    self._exit(RENEWED)
                    return
                pending = self._fleet.pending()
            self._is_in_hand.set()
            if pending:
                self._processes.wait(pending, WATCH_POLL_S)
            else:
                time.sleep(WATCH_POLL_S)
        self._fleet.end()

    @beside("ctl")
    def stop(self) -> None:
        self._stopping.set()

    @beside("ctl")
    def endpoints(
        self, greeting: Greeting | None = None, ended: Sequence[Mapping[str, Any]] = ()
    ) -> list[tuple[str, str, int, bool]]:
        """(actor id, host, port, whether it is drained) of every attention actor that has sequences, or may.

        One that is drained may have the name of one that is not: of its next life.
        ended: the newest choices that have ended there (ingress/metrics.py), for those who look.
        """
        with self._in_hand() as fleet:
            if greeting is not None:
                self._greeted[greeting] = self._clock()
                self._requests.extend({**one, "ingress": greeting.identity} for one in ended)
            found = [(m.actor_id, m.term, False) for m in fleet.attention if m.term]
            found += [(gone.actor_id, gone.term, True) for gone in fleet.farewells if gone.is_draining]
            return [
                (actor_id, term.loaded.host, term.loaded.port, is_drained)
                for actor_id, term, is_drained in found
                if term.loaded is not None
            ]

    @beside("ctl")
    def status(self) -> dict[str, Any]:
        """What the command line shows: every member, the epoch, whether all serve, what happened and when."""
        with self._in_hand() as fleet:
            return {
                "pid": os.getpid(),
                "epoch": fleet.epoch,
                "ingresses": [(g.identity, g.host, g.metrics_port) for g in self._present(self._clock())],
                "first_layer": fleet.config.num_dense_layers,
                "ready": all(member.is_active for member in fleet.members),
                "settled": fleet.is_settled and not fleet.renew_upto,
                "standbys": sum(not life.is_busy() for life in fleet.lives.standbys),
                "failed": [f"{m.actor_id}: {m.gave_up}" for m in fleet.members if m.gave_up],
                "balance": asdict(self._governor.rebalancer.counters),
                "decisions": [[*what, times] for what, times in fleet.decisions.items()],
                "requests": list(self._requests),
                "events": list(fleet.events),
                "members": [member.describe() for member in fleet.members],
            }

    @beside("ctl")
    def stats(self) -> dict[str, Any]:
        """By actor id, the answer to come of every actor that serves."""
        with self._in_hand() as fleet:
            serving = [(m.actor_id, m.serving) for m in fleet.members]
            return {name: term.life.ask("stats").reference for name, term in serving if term}

    @beside("ctl")
    def expert_pairs(self) -> dict[str, Any]:
        """By actor id, the answer to come of every attention actor that serves (Worker.expert_pairs)."""
        with self._in_hand() as fleet:
            serving = [(m.actor_id, m.serving) for m in fleet.attention]
            return {name: term.life.ask("expert_pairs").reference for name, term in serving if term}

    @beside("ctl")
    def plan(self) -> Plan:
        """What it began with."""
        return self._plan

    @beside("ctl")
    def view(self) -> bytes:
        """The newest."""
        with self._in_hand() as fleet:
            return fleet.view.to_bytes()

    @beside("ctl")
    def spoil(self, actor_id: str) -> None:
        """For fault tests: make an expert actor answer rubbish."""
        with self._in_hand() as fleet:
            _serving(fleet, actor_id).life.ask("spoil")

    @beside("ctl")
    def arm(self, actor_id: str, point: str, passes: int) -> None:
        """For fault tests: an actor, or this one, ends at a point of actors/fault_points.py.

        Waits until it is armed. Raises ValueError if it does not serve, or has no such point.
        """
        with self._in_hand() as fleet:
            if actor_id == CONTROLLER:
                arm({"fleet": fleet}, point, passes)
                return
            armed = _serving(fleet, actor_id).life.ask("arm", point, passes)
        self._processes.wait([armed], ARM_S)
        if armed.is_done():
            with suppress(ProcessDied):  # it passed the point before it could answer
                armed.get()

    @beside("ctl")
    def poison(self, seed: int) -> None:
        """For fault tests: every attention actor, of now and later, dies of sequences of this seed."""
        with self._in_hand() as fleet:
            fleet.poison(seed)

    @beside("ctl")
    def order(self, order: str, arguments: Arguments) -> dict[str, str]:
        """Of cluster/orders.py: what is `done`, or the `error`."""
        with self._in_hand() as fleet:
            try:
                return {"done": obey(fleet, order, arguments)}
            except ValueError as error:
                return {"error": str(error)}

    @contextmanager
    def _in_hand(self) -> Iterator[Fleet]:
        """The fleet, once those that live are known, and not while it is looked after."""
        self._is_in_hand.wait()
        with self._lock:
            yield self._fleet

    def _present(self, now_s: float) -> list[Greeting]:
        """The ingresses that have asked of late."""
        self._greeted = {who: at_s for who, at_s in self._greeted.items() if at_s > now_s - PRESENT_S}
        return sorted(self._greeted, key=lambda greeting: greeting.identity)

    def _heard_by_all_s(self, now_s: float) -> float:
        """What was so then, every ingress has been told."""
        return min((self._greeted[who] for who in self._present(now_s)), default=now_s)


def _serving(fleet: Fleet, actor_id: str) -> Term:
    """Raises ValueError."""
    for member in fleet.members:
        if member.actor_id == actor_id and member.serving is not None:
            return member.serving
    serving = ", ".join(member.actor_id for member in fleet.members if member.serving is not None)
    raise ValueError(f"actor is {actor_id!r}: does not serve; serve: {serving}")
