"""Processes as Ray runs them.

`max_restarts=0` always: an actor that may restart hides its death for seconds. Detached, so that it outlives
the controller, which finds it again by name. Knows nothing of what the processes do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from cluster.processes import Answer, ProcessDied, WorkFailed
from cluster.workers import Worker

NAMESPACE = "shoal"
NAME = "life"
CONCURRENCY_GROUPS = {"ctl": 2, "pulse": 2, "load": 1, "trace": 1}  # a trace may take a minute
MEMORY_KEY = b"controller"


@dataclass(frozen=True, slots=True)
class RayAnswer:
    """The result to come of one call."""

    reference: Any

    def is_done(self) -> bool:
        return bool(ray.wait([self.reference], timeout=0, fetch_local=False)[0])

    def get(self) -> Any:
        try:
            return ray.get(self.reference)
        except ray.exceptions.RayTaskError as error:
            raise WorkFailed(str(error.cause)) from None
        except ray.exceptions.RayError as error:
            raise ProcessDied(type(error).__name__) from None


@dataclass(frozen=True, slots=True)
class RayProcess:
    """One Worker."""

    handle: Any

    def ask(self, question: str, *arguments: object) -> RayAnswer:
        return RayAnswer(getattr(self.handle, question).remote(*arguments))

    def end(self, pid: int | None) -> None:
        """Ray asks the process; one that is suspended does not hear that, but hears SIGKILL."""
        if pid is not None:
            kill_here(pid)
        ray.kill(self.handle)


@dataclass(frozen=True, slots=True)
class RayProcesses:
    """Named actors of this Ray cluster. gpus_each: that Ray keeps for each, and shows to no other."""

    gpus_each: int = 0

    def spawn(self, number: int, seat: str | None = None) -> RayProcess:
        named = remote_class(Worker).options(
            name=f"{NAME}/{number}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_gpus=self.gpus_each or None,
            resources={seat: 1} if seat else None,
        )
        return RayProcess(named.remote(node_address))

    def living(self) -> list[tuple[int, RayProcess]]:
        found = []
        for name in ray.util.list_named_actors():
            prefix, _, number = name.partition("/")
            if prefix == NAME:
                with suppress(ValueError):  # it died since
                    found.append((int(number), RayProcess(ray.get_actor(name))))
        return found

    def wait(self, answers: Sequence[Answer], timeout_s: float, *, for_all: bool = False) -> None:
        references = [answer.reference for answer in answers]
        num_returns = len(references) if for_all else 1
        ray.wait(references, num_returns=num_returns, timeout=timeout_s, fetch_local=False)


class RayMemory:
    """In Ray's own store, which lives as long as the cluster's head."""

    def recall(self) -> bytes | None:
        value: bytes | None = _internal_kv_get(MEMORY_KEY, namespace=NAMESPACE)
        return value

    def remember(self, value: bytes) -> None:
        _internal_kv_put(MEMORY_KEY, value, overwrite=True, namespace=NAMESPACE)


def remote_class(kind: type) -> Any:
    """`kind` as a Ray actor class, whose marked methods answer beside its loop."""
    decorate: Any = ray.remote
    return decorate(concurrency_groups=CONCURRENCY_GROUPS, num_cpus=0, max_restarts=0, max_task_retries=0)(
        kind
    )


def node_address() -> str:
    """Of the Ray node that this process is on."""
    own_address: Any = ray.util.get_node_ip_address
    return str(own_address())


def kill_here(pid: int) -> bool:
    """SIGKILL, if it is an actor of this machine; whether it was."""
    try:
        if not psutil.Process(pid).cmdline()[0].startswith("ray::"):
            return False
        os.kill(pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError, IndexError):
        return False  # gone already
    return True


def kill_there(number: int) -> bool:
    """The actor of that number, on whatever machine; whether there is one."""
    try:
        ray.kill(ray.get_actor(f"{NAME}/{number}", namespace=NAMESPACE))
    except ValueError:
        return False  # gone already
    return True
