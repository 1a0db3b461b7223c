"""Ray under this process: a private one, or one that others keep and it joins.

Begins with a token and ends every process that began with it. Knows nothing of what runs there.

Errors: LaunchError, whose text says what failed and what to do.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
from ray import serve

from cluster.environment import OBJECT_STORE_BYTES
from cluster.ray_processes import NAMESPACE

JOIN_TIMEOUT_S = 300.0
JOIN_AGAIN_S = 2.0
KILL_AFTER_S = 5.0
STARTED_TOGETHER = 2  # Ray starts as many processes at a time as it has CPUs; our actors ask for none
SERVE_NAMESPACE = "serve"


class LaunchError(RuntimeError):
    """The cluster did not come up; the text says what failed and what to do."""


def start_ray(num_gpus: int) -> None:
    assert os.environ.get("RAY_AUTH_MODE") == "token", (
        "cluster.environment.ray_environment comes before `import ray`"
    )
    try:
        ray.init(
            address="local",
            namespace=NAMESPACE,
            num_cpus=STARTED_TOGETHER,
            num_gpus=num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:  # noqa: BLE001 - Ray's own is bare where a node does not start in time
        text = " ".join(str(error).split())
        raise LaunchError(f"Ray did not start: {text}; if this machine is very busy, try again") from None


def join_ray(address: str) -> None:
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


def end_serve() -> None:
    """The ingresses when their streams have ended; whatever is left after Serve's own patience, at once."""
    end_serve: Any = serve.shutdown
    end_serve()
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == SERVE_NAMESPACE:
            with suppress(ValueError):  # it has ended since
                ray.kill(ray.get_actor(actor["name"], namespace=SERVE_NAMESPACE))


def end_ray() -> None:
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
