"""From a spec to a serving cluster, and down again.

Starts a private Ray with token authentication, or joins one that others keep, then the controller and Serve.
`shut_down` ends exactly what was started: of a joined Ray nothing, which serves on. Knows nothing of
terminals: progress goes to a callback.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve

from actors.options import AttentionOptions
from cluster.controller import Controller
from cluster.environment import OBJECT_STORE_BYTES, data_token
from cluster.front import CONTROLLER_NAME, FrontOptions, deploy
from cluster.hosts import pid_here
from cluster.look import take
from cluster.plan import Plan
from cluster.preflight import Preflight
from cluster.processes import Answer, AnswerLost
from cluster.ray_processes import (
    NAMESPACE,
    RayMemory,
    RayProcesses,
    kill_here,
    kill_there,
    remote_class,
)
from cluster.snapshot import Snapshot, Unavailable
from cluster.spec import ShoalSpec, tell_connection_limits
from cluster.trace import timeline

POLL_S = 0.1
READY_TIMEOUT_S = 600.0
JOIN_TIMEOUT_S = 300.0
JOIN_AGAIN_S = 2.0
TRACE_SLACK_S = 5.0
STATUS_TIMEOUT_S = 10.0
ORDER_TIMEOUT_S = 60.0  # to place thousands of experts takes seconds
KILL_AFTER_S = 5.0
HEAD_NODE = "node:__internal_head__"  # a resource that Ray gives to this node alone
STARTED_TOGETHER = 2  # Ray starts as many processes at a time as it has CPUs; our actors ask for none


class LaunchError(RuntimeError):
    """The cluster did not come up; the text says what failed and what to do."""


@dataclass(slots=True)
class Cluster:
    """A running cluster: the controller's handle and every process that belongs to it."""

    spec: ShoalSpec
    url: str
    model_name: str
    controller: Any

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

    def snapshot(self) -> Snapshot:
        """For those who look; raises Unavailable if the controller does not answer."""
        try:
            return take(self.controller, self.model_name, self.url)
        except ray.exceptions.RayError as error:
            raise Unavailable(f"the controller does not answer: {type(error).__name__}") from None

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
        return answer

    def stats(self) -> dict[str, dict[str, float]]:
        """By actor id, its counters since birth. Raises ray.exceptions.RayError if one cannot tell."""
        answers = ray.get(self.controller.stats.remote(), timeout=10)
        return {actor_id: ray.get(answer, timeout=10) for actor_id, answer in answers.items()}


def launch(
    spec: ShoalSpec, preflight: Preflight, on_status: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> Cluster:
    """Bring everything up; calls on_status while weights load. Raises LaunchError, everything ended."""
    cluster = begin(spec, preflight)
    try:
        bring_up(cluster, preflight, on_status)
        return cluster
    except BaseException:  # Ctrl-C too must leave nothing running; always raised again
        shut_down(cluster)
        raise


def begin(spec: ShoalSpec, preflight: Preflight) -> Cluster:
    """Ray and the controller: from here on there is something to see. Raises LaunchError, all of it ended."""
    try:
        if spec.address is None:
            tell_connection_limits(spec)
            _start_ray()
        else:
            _join_ray(spec.address)
        controller = _start_controller(spec, preflight)
        return Cluster(spec, f"http://{spec.host}:{spec.port}", preflight.model_name, controller)
    except BaseException:  # as in launch
        _end_ray()
        raise


def bring_up(
    cluster: Cluster, preflight: Preflight, on_status: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> None:
    """The ingresses; returns when all serve. Raises LaunchError."""
    spec = cluster.spec
    options = FrontOptions(
        directory=str(preflight.directory),
        model_name=preflight.model_name,
        context_tokens=preflight.context_tokens,
        max_queue_s=spec.max_queue_s,
        max_body_bytes=spec.max_body_bytes,
        token=data_token(),
        replicas=spec.ingress,
        host=spec.host,
        port=spec.port,
        prefix_cache=spec.prefix_cache,
        metrics_host=spec.data_host,
        api_keys=key_file(spec),
        has_seat=spec.address is not None,
    )
    try:
        deploy(options)
    except ray.exceptions.RayError as error:  # a process of Serve's that a busy machine did not start in time
        text = " ".join(str(error).split())[:300]
        raise LaunchError(f"the ingress did not start: {text}; try again") from None
    _await_ready(cluster, on_status)


def key_file(spec: ShoalSpec) -> str | None:
    """For processes whose working directory is another. A link stays one: what it leads to may change."""
    return None if spec.api_keys is None else str(Path(spec.api_keys).absolute())


def shut_down(cluster: Cluster) -> None:
    """Stop taking requests, end every actor, then every process that Ray started here.

    Of a cluster that was joined: leave it as it is.
    """
    try:
        if cluster.spec.address is None:
            ray.get(cluster.controller.stop.remote(), timeout=5)
    except ray.exceptions.RayError:
        pass  # whatever does not answer is ended below, by process id
    finally:
        _end_ray()


def stop_joined(address: str) -> None:
    """End what serves from a Ray cluster that others keep, the ingresses first. Raises LaunchError."""
    _join_ray(address)
    try:
        controller = ray.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
        end_serve: Any = serve.shutdown
        end_serve()
        ray.get(controller.stop.remote(), timeout=STATUS_TIMEOUT_S)
        deadline_s = time.monotonic() + STATUS_TIMEOUT_S
        while RayProcesses().living() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        ray.kill(controller)
    except ValueError:
        raise LaunchError(f"nothing of Shoal serves from the Ray cluster at {address}") from None
    except ray.exceptions.RayError as error:
        raise LaunchError(f"the controller does not answer: {type(error).__name__}; try again") from None
    finally:
        _end_ray()


def _start_ray() -> None:
    assert os.environ.get("RAY_AUTH_MODE") == "token", (
        "cluster.environment.ray_environment comes before `import ray`"
    )
    try:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            num_cpus=STARTED_TOGETHER,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # noqa: BLE001 - Ray's own is bare where a node does not start in time
        text = " ".join(str(error).split())
        raise LaunchError(f"Ray did not start: {text}; if this machine is very busy, try again") from None


def _join_ray(address: str) -> None:
    """Waits for it: a head that starts beside this process takes its time."""
    deadline_s = time.monotonic() + JOIN_TIMEOUT_S
    while True:
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            return
        except ray.exceptions.AuthenticationError:
            raise LaunchError(f"the Ray cluster at {address} has another token than this process") from None
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            ray.shutdown()
            if time.monotonic() > deadline_s:
                text = " ".join(str(error).split())[:300]
                raise LaunchError(
                    f"no Ray node of the cluster at {address} answers on this host: {text}; "
                    "start one here with `ray start`"
                ) from None
            time.sleep(JOIN_AGAIN_S)


def _start_controller(spec: ShoalSpec, preflight: Preflight) -> Any:
    """Or the one that is there: of a cluster that was joined again."""
    plan = Plan(
        directory=str(preflight.directory),
        dtype=spec.dtype,
        data_host=spec.data_host,
        num_attention=spec.attention,
        num_experts=spec.experts,
        replicas_per_expert=spec.replicas_per_expert,
        redundant_slots=spec.redundant_slots,
        standbys=spec.standbys,
        rebalance_s=spec.rebalance_s,
        autoscale=spec.bounds,
        draft_tokens=preflight.draft_tokens,
        has_seats=spec.address is not None,
        attention=AttentionOptions(
            local=spec.experts == 0,
            context_tokens=preflight.context_tokens,
            cache_tokens=spec.cache_tokens,
            chunk_tokens=spec.chunk_tokens,
            max_sequences=spec.max_sequences,
            prefix_cache=spec.prefix_cache,
            max_queue=spec.max_queue,
            micro_batches=spec.micro_batches,
            answer_timeout_s=spec.answer_timeout_s,
        ),
    )
    try:
        running = ray.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
    except ValueError:
        running = None
    if running is not None:
        _check_same(running, plan)
        return running
    controller = (
        remote_class(Controller)
        .options(
            name=CONTROLLER_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,  # no data passes through it, so nobody waits for the seconds that Ray takes
            max_task_retries=-1,
            resources={
                HEAD_NODE: 0.001
            },  # it can do nothing without the head, and should share its fate alone
        )
        .remote(plan, preflight.config, data_token(), RayProcesses(), RayMemory())
    )
    controller.run.remote()
    return controller


def _check_same(controller: Any, plan: Plan) -> None:
    """What runs is never changed under those whom it serves."""
    try:
        running: Plan = ray.get(controller.plan.remote(), timeout=STATUS_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        raise LaunchError("the controller that runs there does not answer; try again in a moment") from None
    if differing := [name for name in Plan.__slots__ if getattr(running, name) != getattr(plan, name)]:
        raise LaunchError(
            f"what serves there was started with another {', '.join(differing)}; start it with the same, end "
            "it with `shoal stop`, or begin another cluster beside it (docs/operations.md, Upgrade)"
        )


def _await_ready(cluster: Cluster, on_status: Callable[[Mapping[str, Any]], None]) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            status = cluster.status()
        except ray.exceptions.RayError as error:
            raise LaunchError(f"the controller ended: {' '.join(str(error).split())[:300]}") from None
        on_status(status)
        if status["failed"]:
            raise LaunchError("; ".join(status["failed"]))
        if status["ready"]:
            return
        time.sleep(POLL_S)
    raise LaunchError(f"not ready within {READY_TIMEOUT_S:g} s")


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


def _end_ray() -> None:
    with _no_survivors():
        ray.shutdown()


@contextmanager
def _no_survivors() -> Iterator[None]:
    """Whatever this process had started before the block and still lives after it is ended, by process id."""
    started = psutil.Process().children(recursive=True)
    yield
    _, alive = psutil.wait_procs(started, timeout=KILL_AFTER_S)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=KILL_AFTER_S)
