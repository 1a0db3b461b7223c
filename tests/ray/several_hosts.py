"""Shoal on several hosts of one machine: a head, one for attention, three with a seat for an expert.

Begun as docs/operations.md says it: `shoal up` on each, `shoal serve --address` beside the head. Seen from
outside through its two listeners, as a cluster that cluster/chaos.py can hit. Knows nothing of faults.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

from cluster.snapshot import Unavailable
from cluster.spec import ShoalSpec
from tests.ray.cable import Cable
from tests.ray.hosts import Hosts

PATIENCE_S = 300.0
TOKEN, KEY = "0" * 64, "a key for tests"
ADMIN_PORT, HTTP_PORT = 8001, 8000
SEATS = {
    "attention": ("attention=1",),
    "expert-a": ("expert=1",),
    "expert-b": ("expert=1",),
    "spare": ("attention=1", "expert=1"),
}
SHOAL = (sys.executable, "-m", "cluster.cli")
NODES_ARE_THERE = (
    sys.executable,
    "-c",
    "import os, ray, time; ray.init(log_to_driver=False)\n"
    "while sum(node['Alive'] for node in ray.nodes()) < int(os.environ['WANTED']): time.sleep(0.5)",
)


@dataclass(kw_only=True)
class Machine:
    """One host. how: the words after its `shoal up`, which is `up` while it runs."""

    host: str
    address: str
    cable: Cable | None
    how: Sequence[str]
    up: Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        return self.up is not None and self.up.poll() is None


class SeveralHosts:
    """A cluster of one attention actor and two expert actors, each with a copy of every expert.

    The methods of cluster.running.Cluster that faults need, over HTTP; call them within `hosts.visit`.
    """

    def __init__(self, hosts: Hosts, directory: Path) -> None:
        self._hosts, self._directory = hosts, directory
        self.spec = ShoalSpec.from_sources(
            None,
            {
                "attention": 1,
                "experts": 2,
                "replicas_per_expert": 2,
                "address": "unused",
                "host": "127.0.0.1",
            },
        )
        host, address = hosts.add()
        self.head, self._head_host = address, host  # where processes see each other: two begin there
        how = ("--head", "--seat=ingress=1")
        self.machines = {"head": self._start(Machine(host=host, address=address, cable=None, how=how))}
        for name, seats in SEATS.items():
            host, address, cable = hosts.add_on_cable()
            how = (f"--join={self.head}:6379", *(f"--seat={seat}" for seat in seats))
            self.machines[name] = self._start(Machine(host=host, address=address, cable=cable, how=how))
        self._serving = self._serve()
        self._until_all_serve()

    @property
    def url(self) -> str:
        return f"http://{self.head}:{HTTP_PORT}"

    def at(self, address: str) -> Machine:
        [found] = [machine for machine in self.machines.values() if machine.address == address]
        return found

    def snapshot(self) -> dict[str, Any]:
        """Raises Unavailable."""
        request = urllib.request.Request(f"http://{self.head}:{ADMIN_PORT}/snapshot")
        request.add_header("authorization", f"Bearer {KEY}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found: dict[str, Any] = json.loads(answer.read())
        except OSError as error:
            raise Unavailable(str(error)) from None
        return found

    def status(self) -> dict[str, Any]:
        """As Cluster.status, as far as faults ask; waits for a controller that does not answer."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                found = self.snapshot()
                break
            except Unavailable:
                assert time.monotonic() < deadline_s, f"no answer for {PATIENCE_S:g} s"
        members = [{**actor, "active": actor["state"] == "serves"} for actor in found["actors"]]
        return {"pid": 0, "standbys": 0, "members": members, "settled": found["settled"]}

    def events_after(self, at_s: float) -> list[tuple[float, str]]:
        """The hosts' clocks are one clock."""
        try:
            events = self.snapshot()["events"]
        except Unavailable:
            return []
        return [(event["at_s"], event["text"]) for event in events if event["at_s"] > at_s]

    def stats(self) -> dict[str, dict[str, float]]:
        return {actor["actor_id"]: actor["stats"] or {} for actor in self.snapshot()["actors"]}

    def kill(self, machine: Machine) -> None:
        """Every process of that host, at once."""
        assert machine.up is not None
        self._hosts.kill(machine.up)

    def lives_on(self, machine: Machine) -> int:
        """How many actors of ours have a process there."""
        return sum(title.startswith("ray::Worker") for title in self._hosts.titles(machine.host))

    def repair(self) -> None:
        """As an operator, or systemd: cables whole, and `shoal up` again where it has ended."""
        for machine in self.machines.values():
            if machine.cable is not None:
                machine.cable.set()
        head = self.machines["head"]
        asking = self._run(head.host, NODES_ARE_THERE, {"WANTED": str(len(self.machines))})

        def are_there() -> bool:
            for machine in self.machines.values():
                if not machine.is_up:
                    self._start(machine)
            return asking.poll() is not None

        self.until("every host is back", are_there)
        self._until_all_serve()

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}\n{self._hosts.logs()}"
            time.sleep(0.5)

    def _look(self) -> dict[str, Any]:
        try:
            return self._hosts.visit(self.snapshot)
        except Unavailable:
            return {"ready": False}

    def _start(self, machine: Machine) -> Machine:
        """One at a time, and again where Ray gives up, as it does on a machine that is very busy."""

        def has_started() -> bool:
            if not machine.is_up:
                self._hosts.end_all(machine.host)
                up = (*SHOAL, "up", *machine.how, f"--node-ip={machine.address}")
                machine.up = self._run(machine.host, up)
            assert machine.up is not None
            return self._hosts.has_said(machine.up, "Ray runtime started")

        self.until(f"{machine.host} is up", has_started)
        return machine

    def _until_all_serve(self) -> None:
        """`shoal serve` again where it has ended, as an operator or systemd."""

        def is_so() -> bool:
            if self._serving.poll() is not None:
                self._serving = self._serve()
            return bool(self._look()["ready"])

        self.until("all serve", is_so)

    def _serve(self) -> Popen[bytes]:
        head = self.machines["head"]
        flags = [f"--address={self.head}:6379", f"--admin-host={self.head}", f"--admin-port={ADMIN_PORT}"]
        flags += ["--attention=1", "--experts=2", "--replicas-per-expert=2", "--serve-without-keys"]
        return self._run(head.host, (*SHOAL, "serve", *flags), {"SHOAL_ADMIN_KEY": KEY})

    def _run(self, host: str, words: Sequence[str], also: dict[str, str] | None = None) -> Popen[bytes]:
        own = self._directory / host
        own.mkdir(exist_ok=True)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONUNBUFFERED": "1",
            "RAY_AUTH_TOKEN": TOKEN,
            **(also or {}),
        }
        mounts, is_head = {"/tmp/ray": own}, host == self._head_host
        return self._hosts.start(host, words, environment, mounts, shares_processes=is_head)
