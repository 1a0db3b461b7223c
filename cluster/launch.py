"""From a spec to a serving cluster, and down again.

Starts a private Ray with token authentication, or joins one that others keep, then the controller and Serve.
`shut_down` ends exactly what was started: of a joined Ray nothing, which serves on. Knows nothing of
terminals: progress goes to a callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray

from actors.options import AttentionOptions
from cluster.controller import Controller
from cluster.environment import data_token
from cluster.front import CONTROLLER_NAME, Front, FrontOptions
from cluster.gpus import gpus
from cluster.plan import Plan
from cluster.preflight import Preflight
from cluster.ray_node import LaunchError, end_ray, end_serve, join_ray, start_ray
from cluster.ray_processes import (
    NAMESPACE,
    RayMemory,
    RayProcesses,
    remote_class,
)
from cluster.running import STATUS_TIMEOUT_S, Cluster
from cluster.spec import ShoalSpec, tell_connection_limits

POLL_S = 0.1
READY_TIMEOUT_S = 600.0
HEAD_NODE = "node:__internal_head__"  # a resource that Ray gives to this node alone


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
            start_ray(len(gpus()) if spec.device == "cuda" else 0)
        else:
            join_ray(spec.address)
        controller = _start_controller(spec, preflight)
        return Cluster(spec, f"http://{spec.host}:{spec.port}", preflight.model_name, controller)
    except BaseException:  # as in launch
        end_ray()
        raise


def bring_up(
    cluster: Cluster, preflight: Preflight, on_status: Callable[[Mapping[str, Any]], None] = lambda _: None
) -> None:
    """The ingresses; returns when all serve. Raises LaunchError."""
    spec = cluster.spec
    cluster.front = Front(
        FrontOptions(
            directory=str(preflight.directory),
            model_name=preflight.model_name,
            aliases=tuple(spec.aliases),
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
    )
    try:
        cluster.front.deploy()
    except (ray.exceptions.RayError, RuntimeError, TimeoutError) as error:
        text = " ".join(str(error).split())[:300]
        raise LaunchError(
            f"Ray Serve did not start: {text}; if this machine is very busy, try again"
        ) from None
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
        end_ray()


def stop_joined(address: str) -> None:
    """End what serves from a Ray cluster that others keep, the ingresses first. Raises LaunchError."""
    join_ray(address)
    try:
        controller = ray.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
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
        end_ray()


def _start_controller(spec: ShoalSpec, preflight: Preflight) -> Any:
    """Or the one that is there: of a cluster that was joined again."""
    plan = Plan(
        directory=str(preflight.directory),
        device=spec.device,
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
        weights_from=spec.weights_from,
        attention=AttentionOptions(
            local=spec.experts == 0,
            context_tokens=preflight.context_tokens,
            cache_tokens=spec.told_cache_tokens,
            chunk_tokens=spec.chunk_tokens,
            max_sequences=spec.max_sequences,
            prefix_cache=spec.prefix_cache,
            max_queue=spec.max_queue,
            micro_batches=spec.micro_batches,
            threads=spec.threads,
            answer_timeout_s=spec.answer_timeout_s,
        ),
    )
    try:
        running = ray.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
    except ValueError:
        running = None
    if running is not None:
        _check_same(running, plan)
        running.run.remote()  # whoever asked before may be gone: Ray repeats this only for those that live
        return running
    gpus_each = 1 if spec.device == "cuda" else 0
    controller = (
        remote_class(Controller)
        .options(
            name=CONTROLLER_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,  # no data passes through it, so nobody waits for the seconds that Ray takes
            max_task_retries=-1,
            resources={HEAD_NODE: 0.001},  # without the head it can do nothing: it shares that fate alone
        )
        .remote(plan, preflight.config, data_token(), RayProcesses(gpus_each), RayMemory())
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
