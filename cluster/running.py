"""A cluster that runs, as whoever began it holds it: what it says of itself, what it can be told.

Knows nothing of how it comes up or ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from cluster.front import Front
from cluster.hosts import pid_here
from cluster.look import take
from cluster.orders import RESTART
from cluster.processes import Answer, AnswerLost
from cluster.ray_processes import RayProcesses, kill_here, kill_there
from cluster.snapshot import Snapshot, Unavailable
from cluster.spec import ShoalSpec
from cluster.trace import timeline

STATUS_TIMEOUT_S = 10.0
TRACE_SLACK_S = 5.0
ORDER_TIMEOUT_S = 60.0  # to place thousands of experts takes seconds


@dataclass(slots=True)
class Cluster:
    """A running cluster: the controller's handle and every process that belongs to it."""

    spec: ShoalSpec
    url: str
    model_name: str
    controller: Any
    front: Front | None = None  # once it is deployed

    def status(self) -> dict[str, Any]:
        """Controller.status with progress resolved; waits for a controller that is being born again.

        Raises ray.exceptions.RayError if it does not answer within STATUS_TIMEOUT_S.
        """
        status: dict[str, Any] = ray.get(self.controller.status.remote(), timeout=STATUS_TIMEOUT_S)
        for member in status["members"]:
            member["progress"] = _resolve(member["progress"])
        return status

    def events_after(self, at_s: float) -> list[tuple[float, str]]:
        """What happened later than `at_s` (monotonic clock); nothing while the controller does not answer."""
        try:
            events = self.status()["events"]
        except ray.exceptions.RayError:
            return []
        return [(when_s, text) for when_s, text in events if when_s > at_s]

    def spoil(self, actor_id: str) -> None:
        """For fault tests: make an expert actor answer rubbish."""
        ray.get(self.controller.spoil.remote(actor_id), timeout=STATUS_TIMEOUT_S)

    def arm(self, actor_id: str, point: str, passes: int) -> None:
        """For fault tests: who serves ends at the `passes`-th pass of a point; returns when it is armed.

        The points are those of actors/fault_points.py.
        """
        ray.get(self.controller.arm.remote(actor_id, point, passes), timeout=STATUS_TIMEOUT_S)

    def poison(self, seed: int) -> None:
        """For fault tests: every attention actor that serves dies of sequences of this seed."""
        ray.get(self.controller.poison.remote(seed), timeout=STATUS_TIMEOUT_S)

    def snapshot(self) -> Snapshot:
        """For those who look; raises Unavailable if the controller does not answer."""
        try:
            snapshot = take(self.controller, self.model_name, self.url)
        except ray.exceptions.RayError as error:
            raise Unavailable(f"the controller does not answer: {type(error).__name__}") from None
        snapshot["settled"] &= self.front is None or not self.front.is_renewing
        return snapshot

    def kill(self, actor_id: str) -> bool:
        """SIGKILL for an actor that serves; whether there was one. Raises Unavailable as snapshot does."""
        for actor in self.snapshot()["actors"]:
            if actor["actor_id"] == actor_id and actor["pid"]:
                pid = pid_here(actor["host"], actor["pid"])
                return kill_here(pid) if pid else kill_there(actor["incarnation"])
        return False

    def trace(self, steps: int, seconds: float) -> dict[str, Any]:
        """The timeline of the next steps; who does not answer in time is left out."""
        processes = RayProcesses()
        asked = [process.ask("trace", steps, seconds) for _, process in processes.living()]
        if asked:
            processes.wait(asked, seconds + TRACE_SLACK_S, for_all=True)
        found = [_or_none(answer) for answer in asked if answer.is_done()]
        return timeline(dict(one for one in found if one))

    def order(self, order: str, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Of cluster/orders.py: what is `done`, or the `error`; raises Unavailable."""
        try:
            answer: dict[str, str] = ray.get(
                self.controller.order.remote(order, dict(arguments)), timeout=ORDER_TIMEOUT_S
            )
        except ray.exceptions.RayError as error:
            raise Unavailable(f"the controller does not answer: {type(error).__name__}") from None
        if order == RESTART and "done" in answer and self.front is not None:
            answer["done"] += self.front.renew()
        return answer

    def stats(self) -> dict[str, dict[str, float]]:
        """By actor id, its counters since birth. Raises ray.exceptions.RayError if one cannot tell."""
        answers = ray.get(self.controller.stats.remote(), timeout=10)
        return {actor_id: ray.get(answer, timeout=10) for actor_id, answer in answers.items()}


def _or_none(answer: Answer) -> Any:
    try:
        return answer.get()
    except AnswerLost:
        return None  # it died: the events say so


def _resolve(progress: Any) -> tuple[int, int, float] | None:
    """The answer to a progress call, None if there was none to ask or it is not here yet."""
    if progress is None:
        return None
    done, _ = ray.wait([progress], timeout=0.05)
    try:
        answer: tuple[int, int, float] | None = ray.get(progress) if done else None
    except ray.exceptions.RayError:
        return None
    return answer
