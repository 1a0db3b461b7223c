"""The pods of k8s/, each on a host of its own, as KubeRay would start them: they serve, and come back.

Never applied to a cluster: this is as near as one machine comes.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from cluster.embedded import NAME as EMBEDDED
from cluster.embedded import embedded_directory
from ingress.keys import add_key
from tests.pods import (
    Container,
    Pod,
    environment_of,
    expanded,
    of_kind,
    pods_of,
    probe_address,
    recovery_of,
    rendered,
)
from tests.ray.hosts import Hosts, are_possible
from tests.ray.test_serving import oracle, prompt, stream_tokens

pytestmark = [pytest.mark.pods, pytest.mark.timeout(1200)]  # two minutes: make pods
PATIENCE_S = 300.0  # of a machine that others use as well
TOKEN, KEY = "0" * 64, "a key for tests"
SECRETS = {
    "shoal-ray-token": {"auth_token": TOKEN},
    "shoal-admin": {"key": KEY},
    "shoal-redis": {"password": "a-password"},
}
PROMPT = prompt(40, seed=3)
SKIPPED = ("/dev/shm", "/models")  # a host has a /dev/shm of its own; the embedded model needs no volume


@dataclass(frozen=True, kw_only=True)
class Running:
    """A pod on its host. processes: by container."""

    pod: Pod
    host: str
    address: str
    directory: Path
    processes: dict[str, Popen[bytes]] = field(default_factory=dict)


class Cluster:
    """Pods that run, by name: those of the laptop overlay."""

    def __init__(self, hosts: Hosts, directory: Path) -> None:
        self.hosts, self._directory = hosts, directory
        self._manifests = rendered("laptop")
        [self._cluster] = of_kind(self._manifests, "RayCluster")
        self._image = self._make_image()
        keys = directory / "keys.json"
        self.key = add_key(keys, "me")
        self._secrets = {**SECRETS, "shoal-api-keys": {keys.name: keys.read_text()}}
        self.running: dict[str, Running] = {}
        self._addresses = {"shoal-redis": self._start_redis()}
        host, address = hosts.add()
        self._pods = {pod.group: pod for pod in pods_of(self._cluster, address)}
        self._run("head", Running(pod=self._pods["head"], host=host, address=address, directory=directory))

    def replicas(self, group: str) -> int:
        [found] = [g for g in self._cluster["spec"]["workerGroupSpecs"] if g["groupName"] == group]
        return int(found["replicas"])

    def add(self, group: str, name: str) -> None:
        """A worker pod; returns when its Ray node is there."""
        host, address = self.hosts.add()
        pod = self._pods[group]
        self._run(name, Running(pod=pod, host=host, address=address, directory=self._directory))

    def start(self, name: str, container: Container, command: tuple[str, ...] | None = None) -> Popen[bytes]:
        """command: another one in that container, as a hook is."""
        at = self.running[name]
        own = environment_of(container, self._manifests, self._secrets, at.address)
        environment = {**self._image, **own}
        if container is at.pod.ray:  # as spec.authOptions makes KubeRay do
            assert self._cluster["spec"]["authOptions"]["secretName"] == "shoal-ray-token"
            environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
            environment |= recovery_of(self._cluster, at.pod, self._secrets, self._addresses)
        return self.hosts.start(
            at.host,
            expanded(command or container.command, environment),
            environment,
            self._mounts(name, container),
            shares_processes=at.pod.spec.get("shareProcessNamespace", False),
        )

    def start_again(self, name: str, container: Container) -> None:
        self.running[name].processes[container.name] = self.start(name, container)

    def comes_back(self, name: str) -> None:
        """Until the sidecar is ready; the kubelet begins one of its kind again whenever it ends."""
        sidecar, processes = self.running[name].pod.containers[0], self.running[name].processes
        assert sidecar.own["restartPolicy"] == "Always"

        def is_back() -> bool:
            if processes[sidecar.name].poll() is not None:
                self.start_again(name, sidecar)
            return self.passes(name, sidecar, "readinessProbe")

        self.until(f"the sidecar of {name} is back", is_back)

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}\n{self.hosts.logs()}"
            time.sleep(0.5)

    def passes(self, name: str, container: Container, probe: str) -> bool:
        return self.get(probe_address(container, probe, self.running[name].address)) is not None

    def get(self, address: str, headers: Mapping[str, str] | None = None) -> bytes | None:
        """None: no answer, or an error."""

        def ask() -> bytes | None:
            try:
                request = urllib.request.Request(address, headers=dict(headers or {}))
                with urllib.request.urlopen(request, timeout=5) as answer:
                    body: bytes = answer.read()
                return body
            except OSError:
                return None

        return self.hosts.visit(ask)

    def actors(self) -> list[dict[str, Any]]:
        admin = f"http://{self.running['head'].address}:8001/snapshot"
        body = self.get(admin, {"authorization": f"Bearer {KEY}"})
        assert body is not None, self.hosts.logs()
        found: list[dict[str, Any]] = json.loads(body)["actors"]
        return found

    def lives(self) -> dict[str, int]:
        return {actor["actor_id"]: actor["incarnation"] for actor in self.actors()}

    def tokens(self, prompt_ids: list[int], on_first: Callable[[], object] = lambda: None) -> list[int]:
        url = f"http://{self.running['ingress-0'].address}:8000"
        return self.hosts.visit(
            lambda: stream_tokens(url, prompt_ids, on_first, key=self.key, model=EMBEDDED)
        )

    def _run(self, name: str, running: Running) -> None:
        self.running[name] = running
        for container in running.pod.containers:
            self.start_again(name, container)
        # One after another: Ray nodes that start at the same moment may meet on one file system.
        self.until(f"{name} is alive", lambda: self.passes(name, running.pod.ray, "livenessProbe"))

    def _start_redis(self) -> str:
        """The container of its StatefulSet; the address of its host."""
        sets = {found["metadata"]["name"]: found for found in of_kind(self._manifests, "StatefulSet")}
        [own] = sets["shoal-redis"]["spec"]["template"]["spec"]["containers"]
        container = Container(name="redis", command=tuple(own["command"]), own=own)
        host, address = self.hosts.add()
        environment = self._image | environment_of(container, self._manifests, self._secrets, address)
        data = self._directory / "redis"
        data.mkdir()
        self.hosts.start(host, container.command, environment, {"/data": data})
        return address

    def _mounts(self, name: str, container: Container) -> dict[str, Path]:
        mounted = {m["mountPath"]: m["name"] for m in container.own["volumeMounts"]}
        mounts = {path: self._volume(name, own) for path, own in mounted.items() if path not in SKIPPED}
        return {"/tmp/ray": self._volume(name, f"own-{container.name}"), **mounts}

    def _volume(self, name: str, volume: str) -> Path:
        directory = self._directory / name / volume
        directory.mkdir(parents=True, exist_ok=True)
        maps = {m["metadata"]["name"]: m["data"] for m in of_kind(self._manifests, "ConfigMap")}
        for found in self.running[name].pod.spec["volumes"]:
            files: Mapping[str, str] = {}
            if found["name"] == volume and "configMap" in found:
                files = maps[found["configMap"]["name"]]
            elif found["name"] == volume and "secret" in found:
                files = self._secrets[found["secret"]["secretName"]]
            for file, text in files.items():
                (directory / file).write_text(text)
        return directory

    def _make_image(self) -> dict[str, str]:
        """What the image would have: the commands on its path."""
        commands = self._directory / "bin"
        commands.mkdir()
        shoal = commands / "shoal"
        shoal.write_text(f'#!/bin/sh\nexec {sys.executable} -m cluster.cli "$@"\n')
        shoal.chmod(0o755)
        path = f"{commands}:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not are_possible():
        pytest.skip("network, process and mount namespaces need root")
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian package redis-server)")
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        cluster = Cluster(hosts, tmp_path_factory.mktemp("pods"))
        for group in ("ingress", "attention", "expert"):
            for number in range(cluster.replicas(group)):
                cluster.add(group, f"{group}-{number}")
        yield cluster
    finally:
        hosts.close()


@pytest.fixture(scope="module", name="ready")
def _ready(pods: Cluster) -> Cluster:
    """When its own readiness probes say so."""
    for name in ("head", "ingress-0"):
        container = pods.running[name].pod.containers[0]
        pods.until(f"{name} is ready", lambda c=container, n=name: pods.passes(n, c, "readinessProbe"))
    return pods


def test_each_actor_takes_the_seat_of_a_pod_of_its_kind_and_all_probes_pass(ready: Cluster) -> None:
    for name, at in ready.running.items():
        for container in at.pod.containers:
            for probe in ("livenessProbe", "readinessProbe"):
                assert ready.passes(name, container, probe), (name, container.name, probe)
    seats = {(actor["kind"], actor["host"]) for actor in ready.actors()}
    assert seats == {(at.pod.group, at.address) for at in ready.running.values()} - {
        (group, ready.running[name].address) for group, name in (("head", "head"), ("ingress", "ingress-0"))
    }
    assert ready.tokens(PROMPT) == oracle(embedded_directory(), PROMPT)


def test_an_ingress_that_answers_itself_is_closed_and_bounded_as_serves_proxy_is(ready: Cluster) -> None:
    url = f"http://{ready.running['ingress-0'].address}:8000"
    own = {"authorization": f"Bearer {ready.key}"}
    assert ready.get(f"{url}/v1/models", own) is not None
    assert ready.get(f"{url}/v1/models") is None
    assert ready.get(f"{url}/-/routes", own) is None


def test_the_death_of_the_sidecar_is_not_seen_and_its_next_life_starts_nothing_again(ready: Cluster) -> None:
    expected, lives = oracle(embedded_directory(), PROMPT), ready.lives()
    head = ready.running["head"]
    sidecar = head.pod.containers[0]
    for end in (ready.hosts.kill, ready.hosts.terminate):
        assert ready.tokens(PROMPT, on_first=lambda end=end: end(head.processes[sidecar.name])) == expected
        assert ready.tokens(PROMPT) == expected
        ready.start_again("head", sidecar)
        ready.until("it is back", lambda: ready.passes("head", sidecar, "readinessProbe"))
        assert ready.lives() == lives


def test_an_expert_whose_pod_dies_waits_for_the_next_pod_and_the_stream_for_both(ready: Cluster) -> None:
    expected = oracle(embedded_directory(), PROMPT)
    dying = ready.running["expert-0"]
    streamed: list[list[int]] = []

    def stream() -> None:
        kill = lambda: ready.hosts.kill(dying.processes["ray"])  # noqa: E731
        streamed.append(ready.tokens(PROMPT, on_first=kill))

    thread = threading.Thread(target=stream)
    thread.start()
    ready.until("it is gone", lambda: dying.processes["ray"].poll() is not None)
    ready.add("expert", "expert-2")
    thread.join(PATIENCE_S)
    assert streamed == [expected], ready.hosts.logs()
    sidecar = ready.running["head"].pod.containers[0]
    ready.until("all serve", lambda: ready.passes("head", sidecar, "readinessProbe"))
    assert ready.running["expert-2"].address in {actor["host"] for actor in ready.actors()}


def test_an_ingress_that_is_to_end_waits_for_its_streams(ready: Cluster) -> None:
    ingress = ready.running["ingress-0"].pod.ray
    command = tuple(ingress.own["lifecycle"]["preStop"]["exec"]["command"])
    hooks: list[Popen[bytes]] = []
    ended = ready.tokens(PROMPT, on_first=lambda: hooks.append(ready.start("ingress-0", ingress, command)))
    assert ended == oracle(embedded_directory(), PROMPT)
    assert hooks[0].wait(60) == 0


def test_a_head_that_dies_is_not_seen_by_streams_and_its_next_life_knows_all(ready: Cluster) -> None:
    expected, lives, head = oracle(embedded_directory(), PROMPT), ready.lives(), ready.running["head"]

    def die() -> None:
        for process in head.processes.values():
            ready.hosts.kill(process)

    assert ready.tokens(PROMPT, on_first=die) == expected
    assert ready.tokens(PROMPT) == expected, "a new request while there is no head"
    for container in head.pod.containers:
        ready.start_again("head", container)
    ready.comes_back("head")
    assert ready.lives() == lives, "it began again what lives"
    ready.hosts.kill(ready.running["expert-1"].processes["ray"])
    ready.add("expert", "expert-3")
    assert ready.tokens(PROMPT) == expected
    ready.comes_back("head")
    assert ready.running["expert-3"].address in {actor["host"] for actor in ready.actors()}
