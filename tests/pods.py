"""What Kubernetes and KubeRay make of k8s/: pods, their commands, environment and probes.

Renders an overlay with kubectl and applies the rules of KubeRay 1.7 (controllers/ray/common/pod.go) to the
RayCluster. Knows nothing of how a pod is run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).parents[1] / "k8s"
OVERLAYS = ("laptop", "gpu-node", "multi-node", "next")
MANIFEST = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Container:
    """A sidecar, or Ray's with the command that KubeRay gives it. own: as the manifest has it."""

    name: str
    command: tuple[str, ...]
    own: MANIFEST


@dataclass(frozen=True, kw_only=True)
class Pod:
    """containers: in the order of their start. group: head, or that of the workers."""

    group: str
    containers: tuple[Container, ...]
    spec: MANIFEST
    labels: Mapping[str, str]

    @property
    def ray(self) -> Container:
        return self.containers[-1]


def rendered(overlay: str) -> list[MANIFEST]:
    """Every manifest of an overlay, by kubectl's own kustomize; skips where there is none."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed (Debian package kubernetes-client)")
    command = [kubectl, "kustomize", str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def of_kind(manifests: Sequence[MANIFEST], kind: str) -> list[MANIFEST]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pods_of(cluster: MANIFEST, head_address: str) -> Iterator[Pod]:
    """The head's pod and one of each group. head_address: as workers reach it."""
    spec = cluster["spec"]
    missing = {"dashboard-host": "0.0.0.0"}
    if "gcsFaultToleranceOptions" in spec:
        missing["redis-password"] = "$REDIS_PASSWORD"
    yield _pod("head", spec["headGroupSpec"], "ray start --head", missing)
    for group in spec["workerGroupSpecs"]:
        yield _pod(group["groupName"], group, "ray start", {"address": f"{head_address}:6379"})


def _pod(name: str, group: MANIFEST, start: str, missing: Mapping[str, str]) -> Pod:
    spec, metadata = group["template"]["spec"], group["template"]["metadata"]
    parameters = {**missing, **group["rayStartParams"], **_resource_parameters(group)}
    parameters |= {"metrics-export-port": "8080", "block": "true", "dashboard-agent-listen-port": "52365"}
    [ray] = spec["containers"]
    assert "command" not in ray and "args" not in ray, "KubeRay would put it before `ray start`"
    limit = ray["resources"].get("limits", {}).get("memory")
    if limit:
        parameters.setdefault("memory", str(_bytes(limit)))
    sidecars = [
        Container(name=own["name"], command=(*own["command"], *own.get("args", ())), own=own)
        for own in spec.get("initContainers", ())
    ]
    words = " ".join(f"--{k}" if v == "true" else f"--{k}={v}" for k, v in sorted(parameters.items()))
    command = ("/bin/bash", "-c", "--", f"ulimit -n 65536; {start} {words}")
    started = Container(name=ray["name"], command=command, own=ray)
    return Pod(group=name, containers=(*sidecars, started), spec=spec, labels=metadata["labels"])


def _resource_parameters(group: MANIFEST) -> dict[str, str]:
    resources = dict(group.get("resources", {}))
    parameters = {"num-cpus": resources.pop("CPU")} if "CPU" in resources else {}
    if resources:
        named = {name: float(quantity) for name, quantity in resources.items()}
        parameters["resources"] = f"'{json.dumps(named, separators=(',', ':'))}'"
    return parameters


def _bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) << {"Mi": 20, "Gi": 30}[unit]


def environment_of(
    container: Container,
    manifests: Sequence[MANIFEST],
    secrets: Mapping[str, Mapping[str, str]],
    pod_ip: str,
) -> dict[str, str]:
    """What the container finds in its environment; a ConfigMap or a Secret that is not there is an error."""
    maps = {manifest["metadata"]["name"]: manifest["data"] for manifest in of_kind(manifests, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.own.get("envFrom", ()):
        found |= maps[source["configMapRef"]["name"]]
    for entry in container.own.get("env", ()):
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        elif "fieldRef" in entry["valueFrom"]:
            assert entry["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
            found[entry["name"]] = pod_ip
        else:
            reference = entry["valueFrom"]["secretKeyRef"]
            found[entry["name"]] = secrets[reference["name"]][reference["key"]]
    return found


def recovery_of(
    cluster: MANIFEST, pod: Pod, secrets: Mapping[str, Mapping[str, str]], addresses: Mapping[str, str]
) -> dict[str, str]:
    """What gcsFaultToleranceOptions puts into the environment of a pod's Ray. addresses: of Services."""
    if pod.group != "head":
        return {"RAY_gcs_rpc_server_reconnect_timeout_s": "600"}
    options = cluster["spec"]["gcsFaultToleranceOptions"]
    reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    service, port = re.fullmatch(r"redis://([\w-]+):(\d+)", options["redisAddress"]).groups()  # type: ignore[union-attr]
    return {
        "RAY_REDIS_ADDRESS": f"redis://{addresses[service]}:{port}",
        "REDIS_PASSWORD": secrets[reference["name"]][reference["key"]],
        "RAY_external_storage_namespace": "the uid of the RayCluster",
    }


def expanded(words: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """As Kubernetes replaces $(NAME) in commands."""
    return [re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word) for word in words]


def probe_address(container: Container, probe: str, pod_ip: str) -> str:
    """What the kubelet asks."""
    get = container.own[probe]["httpGet"]
    [port] = [port["containerPort"] for port in container.own["ports"] if port["name"] == get["port"]]
    return f"http://{pod_ip}:{port}{get['path']}"
