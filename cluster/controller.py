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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from cluster.autoscale import Autoscaler
from cluster.fleet import Fleet
from cluster.governor import Governor
from cluster.orders import Arguments, obey
from cluster.plan import Plan
from cluster.processes import Greeting, Memory, Processes, beside
from cluster.rebalance import Rebalancer
from model.config import ModelConfig

logger = logging.getLogger(__name__)

WATCH_POLL_S = 0.2
FAULT, RENEWED = 70, 75  # exit status
FAULT_PAUSE_S = 1.0  # one that comes again at once should not take the machine
PRESENT_S = 5.0  # an ingress asks twice a second


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

    def run(self) -> None:
        """Keep every member alive until stopped."""
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
    def endpoints(self, greeting: Greeting | None = None) -> list[tuple[str, str, int, bool]]:
        """(actor id, host, port, whether it is to leave) of every attention actor that serves."""
        with self._in_hand() as fleet:
            if greeting is not None:
                self._greeted[greeting] = self._clock()
            found = [(m, m.term.loaded) for m in fleet.attention if m.term and m.term.loaded]
            missed = not fleet.has_successor  # who leaves is asked on until another serves
            return [
                (m.actor_id, loaded.host, loaded.port, m.is_leaving and not missed) for m, loaded in found
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
            [term] = [m.serving for m in fleet.experts if m.actor_id == actor_id and m.serving]
            term.life.ask("spoil")

    @beside("ctl")
    def poison(self, seed: int) -> None:
        """For fault tests: every attention actor that serves dies of sequences of this seed."""
        with self._in_hand() as fleet:
            for member in fleet.attention:
                if member.serving is not None:
                    member.serving.life.ask("poison", seed)

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
