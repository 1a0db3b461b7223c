"""What Ray's autoscaler hears of actors that wait for a seat, and what it would start for them.

A program of its own with a private Ray without a single seat: `python -m tests.ray.demand` prints JSON. The
groups are those of k8s/base, as KubeRay tells the autoscaler of them. Knows nothing of pods.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from cluster.environment import ray_environment
from cluster.hosts import seat_for

LIMIT_S = 60.0
WAITING = ("expert", "expert", "attention")
MANIFEST = Path(__file__).parents[2] / "k8s/base/cluster.yaml"


def main() -> None:
    with ray_environment():
        from cluster.ray_node import end_ray, start_ray
        from cluster.ray_processes import RayProcesses

        start_ray(0)
        try:
            for number, kind in enumerate(WAITING, 1):
                RayProcesses().spawn(number, seat_for(kind))
            requests = pending()
            told = Counter({str(dict(r.request.resources_bundle)): r.count for r in requests})
            sys.stdout.write(json.dumps({"told": told, "starts": starts(requests)}))
        finally:
            end_ray()


def pending() -> list[Any]:
    """Requests that the GCS shows to the autoscaler, once all that wait are among them."""
    from ray._private.worker import global_worker
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    deadline_s = time.monotonic() + LIMIT_S
    requests: list[Any] = []
    while sum(request.count for request in requests) < len(WAITING) and time.monotonic() < deadline_s:
        time.sleep(0.2)
        requests = list(get_cluster_resource_state(global_worker.gcs_client).pending_resource_requests)
    return requests


def starts(requests: list[Any]) -> dict[str, int]:
    """Nodes by group that the autoscaler's own scheduler asks for."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest

    [cluster] = [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == "RayCluster"]
    groups = {
        group["groupName"]: NodeTypeConfig(
            name=group["groupName"],
            min_worker_nodes=0,
            max_worker_nodes=group["maxReplicas"],
            resources={name: float(count) for name, count in group["resources"].items()},
        )
        for group in cluster["spec"]["workerGroupSpecs"]
    }
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True, node_type_configs=groups, resource_requests=requests
        )
    )
    return {launch.instance_type: launch.count for launch in reply.to_launch}


if __name__ == "__main__":
    main()
