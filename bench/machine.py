"""The machine that a run was made on, and how much of it was ours.

Says nothing that would name a host, a person or a path. Knows nothing of what is measured.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PATH_OPTIONS = ("--json", "--checkpoint", "--against", "--directory", "--out")
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


def command(module: str, arguments: Sequence[str] | None = None) -> str:
    """How a run was asked for (default: this one), without the arguments whose value is a path."""
    plain: list[str] = []
    given = iter(sys.argv[1:] if arguments is None else arguments)
    for argument in given:
        if argument in PATH_OPTIONS:
            next(given, None)
        elif not argument.startswith(tuple(f"{option}=" for option in PATH_OPTIONS)):
            plain.append(argument)
    return " ".join([f"python -m {module}", *plain])


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


def tree_peak_bytes(pid: int) -> int:
    """Most memory that a process and all below it have held, each at its own moment; 0 if it is not told."""
    peak = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(OSError, KeyError):
                peak += _status_bytes("VmHWM", process.pid)
    return peak


def _status_bytes(field: str, pid: int | str = "self") -> int:
    """Of a process, as Linux tells it."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
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
