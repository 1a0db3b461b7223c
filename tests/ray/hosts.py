"""Hosts of their own on one machine: a network, a process table and mounts for each pod.

Needs root and Linux. What one host starts cannot see, signal or reach another but over the network, as pods
cannot. Knows nothing of what runs there.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from tests.ray.cable import Cable
from tests.ray.netns import within

T = TypeVar("T")
NETWORK = "10.231.77"


def are_possible() -> bool:
    """Whether this process may make network, process and mount namespaces."""
    if os.name != "posix" or os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    probe = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


class Hosts:
    """A bridge and the hosts on it; `close` ends every process that was started and removes the networks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._prefix = f"shoal{os.getpid()}"
        self._bridge = f"{self._prefix}-bridge"
        self._names: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}
        self._cables: list[Cable] = []
        self._pauses: dict[str, int] = {}
        _ip("netns", "add", self._bridge)
        _ip("-n", self._bridge, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._bridge, "addr", "add", f"{NETWORK}.1/24", "dev", "bridge")
        for device in ("bridge", "lo"):
            _ip("-n", self._bridge, "link", "set", device, "up")

    def add(self) -> tuple[str, str]:
        """A host: its name and its address."""
        name, port = self._name()
        _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", self._bridge)
        return name, self._plug_in(name, port)

    def add_on_cable(self) -> tuple[str, str, Cable]:
        """A host as `add` makes it, and the cable that alone leads to it."""
        name, port = self._name()
        cable = Cable((name, "eth0"), (self._bridge, port))
        self._cables.append(cable)
        return name, self._plug_in(name, port), cable

    def _name(self) -> tuple[str, str]:
        """Of the next host, and of its port of the bridge."""
        number = len(self._names) + 2
        self._names.append(name := f"{self._prefix}-{number}")
        _ip("netns", "add", name)
        return name, f"to{number}"

    def _plug_in(self, name: str, port: str) -> str:
        """Its address."""
        address = f"{NETWORK}.{len(self._names) + 1}"
        _ip("-n", self._bridge, "link", "set", port, "master", "bridge", "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", name, "link", "set", device, "up")
        _ip("-n", name, "route", "add", "default", "via", f"{NETWORK}.1")
        return address

    def start(
        self,
        host: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        mounts: Mapping[str, Path],
        *,
        shares_processes: bool = False,
    ) -> subprocess.Popen[bytes]:
        """mounts: directories by the path at which the command finds them.

        shares_processes: with what else is started on that host so; else it sees its own only.
        """
        number = len(self._processes)
        own = self._directory / f"{host}-{number}"
        own.mkdir()
        steps = ["set -e", "mount -t proc proc /proc", "mount -t tmpfs shm /dev/shm"]
        steps += [f"mount -t tmpfs over {own}", f"mkdir {own}/upper {own}/work"]
        steps += [f"mount -t overlay over -o lowerdir=/etc,upperdir={own}/upper,workdir={own}/work /etc"]
        steps += [f"mkdir {own}/home", "mkdir -p /tmp/ray"]
        for target, source in mounts.items():
            steps += [f"mkdir -p {target}", f"mount --bind {source} {target}"]
        steps.append("exec " + shlex.join(command))
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        if shares_processes:
            inside = ["nsenter", f"--pid=/proc/{self._pause(host)}/ns/pid", "unshare", "--mount"]
        path = self._directory / f"{host}-{number}.log"
        log = path.open("wb")
        process = subprocess.Popen(
            ["ip", "netns", "exec", host, *inside, "bash", "-c", "; ".join(steps)],
            env={**environment, "HOME": f"{own}/home"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._processes.append(process)
        self._logs[process.pid] = path
        return process

    def has_said(self, process: subprocess.Popen[bytes], words: str) -> bool:
        return words in self._logs[process.pid].read_text()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL for all that it has started."""
        for found in (*psutil.Process(process.pid).children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                found.kill()
        process.wait(20)

    def terminate(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM for the command itself, as the kubelet sends it; its exit status."""
        for child in psutil.Process(process.pid).children():
            child.terminate()
        return process.wait(90)

    def titles(self, host: str) -> list[str]:
        """What the processes of that host call themselves."""
        titles = []
        for process in self._processes_of(host):
            with suppress(psutil.Error, IndexError):  # it has ended meanwhile
                titles.append(process.cmdline()[0])
        return titles

    def end_all(self, host: str) -> None:
        """Whatever still runs there, however it was started."""
        self._pauses.pop(host, None)
        for process in self._processes_of(host):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _processes_of(self, host: str) -> list[psutil.Process]:
        listed = subprocess.run(["ip", "netns", "pids", host], check=True, capture_output=True, text=True)
        found = []
        for pid in listed.stdout.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def _pause(self, host: str) -> int:
        """A process that does nothing but own the host's table of processes; its number."""
        if host not in self._pauses:
            own = ["unshare", "--pid", "--fork", "--kill-child", "sleep", "infinity"]
            process = subprocess.Popen(["ip", "netns", "exec", host, *own])
            self._processes.append(process)
            while not (children := psutil.Process(process.pid).children()):
                time.sleep(0.01)
            self._pauses[host] = children[0].pid
        return self._pauses[host]

    def logs(self) -> str:
        """The ends of what all said."""
        return "\n".join(f"== {f.name}\n{f.read_text()[-2000:]}" for f in self._directory.glob("*.log"))

    def visit(self, what: Callable[[], T]) -> T:
        """Call it with the bridge's network, from which every host can be reached."""
        return within(self._bridge, what)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    self.kill(process)
        for cable in self._cables:
            cable.close()
        for name in (*self._names, self._bridge):
            _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
