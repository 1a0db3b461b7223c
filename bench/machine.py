"""The machine that a run was made on, and how much of it was ours.

Says nothing that would name a host, a person or a path. Knows nothing of what is measured.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("shoal", "torch", "transformers", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuTimes:
    """Seconds: of the wall clock, of work that the machine has done, and of that by our own processes."""

    wall_s: float
    machine_s: float
    own_s: float


def cpu_times() -> CpuTimes:
    """Now; ours are this process and everything below it."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user already
    this = psutil.Process()
    own = sum(_seconds(process) for process in [this, *this.children(recursive=True)])
    return CpuTimes(wall_s=time.monotonic(), machine_s=sum(times) - idle - guests, own_s=own)


def foreign_cores(before: CpuTimes, after: CpuTimes) -> float:
    """Cores that were busy with other people's work in between."""
    busy = (after.machine_s - before.machine_s) - (after.own_s - before.own_s)
    return max(0.0, busy / (after.wall_s - before.wall_s))


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Bytes that this process held at most within the block beyond those at its start, put into the list.

    What the allocator keeps of earlier work is given back first. Left empty where the system does not tell.
    """
    peak: list[int] = []
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        peak.append(_status_bytes("VmRSS"))
    yield peak
    if peak:
        peak[0] = max(0, _status_bytes("VmHWM") - peak[0])


def _status_bytes(field: str) -> int:
    """Of this process, as Linux tells it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields[field].removesuffix("kB")) << 10


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0  # it ended in between
    return float(times.user + times.system)


def _cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "0+source"
