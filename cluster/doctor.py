"""What is wrong with this machine for Shoal, and how to mend it.

Each check looks at one thing and gives one finding; none changes anything. Knows nothing of terminals.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from cluster.gpu_fit import check_gpus
from cluster.gpus import Gpu, gpus
from cluster.port import check_port
from cluster.preflight import examine
from cluster.spec import ShoalSpec, SpecError

State = Literal["good", "poor", "bad"]
PYTHON = (3, 11)
RAY = "2.60."
TORCH = (2, 11)
SHARED_BYTES = 200 << 20  # Ray's object store (80 MB) and its channels
WIDTHS = (256, 512, 1024)  # of small models
FEW_FILES, ENOUGH_FILES = 1024, 8192  # a connection, a link and a checkpoint file are one each


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """poor: it works, but not as well as it could; bad: it does not. remedy: of what is not good."""

    name: str
    state: State
    text: str
    remedy: str = ""

    def told(self) -> dict[str, Any]:
        return asdict(self)


def findings(spec: ShoalSpec, environment: Mapping[str, str]) -> Iterator[Finding]:
    """One by one, the quick ones first."""
    yield python(sys.version_info[:2])
    yield torch(_version("torch"))
    yield ray(_version("ray"))
    yield ray_address(environment)
    yield port(spec.host, spec.port)
    yield shared_memory(Path("/dev/shm"))
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield cores(len(os.sched_getaffinity(0)))
    if spec.device == "cpu":
        yield products()
    yield model(spec)
    yield gpu(gpus())


def python(version: tuple[int, ...]) -> Finding:
    text = f"{'.'.join(map(str, version))} on {platform.machine()}"
    if version < PYTHON:
        return Finding(name="python", state="bad", text=text, remedy="install Python 3.11 or later")
    return Finding(name="python", state="good", text=text)


def torch(version: str | None) -> Finding:
    if version is None:
        return Finding(name="torch", state="bad", text="not installed", remedy="make setup")
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < TORCH:
        return Finding(name="torch", state="bad", text=version, remedy="make setup installs a later one")
    return Finding(name="torch", state="good", text=version)


def ray(version: str | None) -> Finding:
    if version is None:
        return Finding(name="ray", state="bad", text="not installed", remedy="make setup")
    if not version.startswith(RAY):
        remedy = f"install ray {RAY}x (make setup): parts of it that Shoal relies on are private"
        return Finding(name="ray", state="bad", text=version, remedy=remedy)
    return Finding(name="ray", state="good", text=version)


def ray_address(environment: Mapping[str, str]) -> Finding:
    address = environment.get("RAY_ADDRESS")
    if address:
        text = f"RAY_ADDRESS is {address}; `shoal serve` starts a Ray of its own all the same"
        return Finding(name="ray cluster", state="poor", text=text, remedy="unset RAY_ADDRESS")
    return Finding(name="ray cluster", state="good", text="none named: `shoal serve` starts its own")


def port(host: str, number: int) -> Finding:
    try:
        check_port(host, number)
    except SpecError as error:
        text, _, remedy = str(error).partition("; ")
        return Finding(name="port", state="bad", text=text, remedy=remedy)
    return Finding(name="port", state="good", text=f"{number} on {host} is free")


def shared_memory(place: Path) -> Finding:
    try:
        free = psutil.disk_usage(str(place)).free
    except OSError as error:
        remedy = "mount a tmpfs there: Ray's object store needs it"
        return Finding(name="shared memory", state="bad", text=f"{place}: {error.strerror}", remedy=remedy)
    text = f"{free / 1e6:.0f} MB free in {place}"
    if free < SHARED_BYTES:
        remedy = "give it 256 MB or more (docker run --shm-size=256m): Ray would use files instead, slowly"
        return Finding(name="shared memory", state="poor", text=text, remedy=remedy)
    return Finding(name="shared memory", state="good", text=text)


def open_files(soft: int, hard: int) -> Finding:
    text = f"{soft} now, {hard} at most"
    if hard != resource.RLIM_INFINITY and hard <= FEW_FILES:
        remedy = f"raise the hard limit (ulimit -Hn {ENOUGH_FILES}, or LimitNOFILE= of the service)"
        return Finding(name="open files", state="bad", text=text, remedy=remedy)
    if soft != resource.RLIM_INFINITY and soft < ENOUGH_FILES:
        return Finding(name="open files", state="poor", text=text, remedy=f"ulimit -n {ENOUGH_FILES}")
    return Finding(name="open files", state="good", text=text)


def cores(count: int) -> Finding:
    if count < 2:
        remedy = "attention and expert actors take turns on one core: --experts 0 saves the way between them"
        return Finding(name="cores", state="poor", text=str(count), remedy=remedy)
    return Finding(name="cores", state="good", text=str(count))


def products() -> Finding:
    """Whether the sums of this machine's BLAS are understood, so that few rows need not wait for it."""
    if _version("torch") is None or _version("numba") is None:
        return Finding(name="products", state="bad", text="no torch, or no numba", remedy="make setup")
    import torch as library

    from kernels.few_rows import blocks_of

    library.set_num_threads(1)  # as actors have it
    unknown = [inner for inner in WIDTHS if blocks_of(inner, inner) is None]
    if unknown:
        text = f"the BLAS sums {', '.join(map(str, unknown))} numbers in an order that Shoal does not know"
        remedy = "it serves all the same, decode on the CPU takes about twice as long; report this processor"
        return Finding(name="products", state="poor", text=text, remedy=remedy)
    return Finding(name="products", state="good", text="the order of the BLAS's sums is known")


def model(spec: ShoalSpec) -> Finding:
    """The checkpoint, and room for it."""
    try:
        seen = examine(spec)
    except ValueError as error:
        text, _, remedy = str(error).partition("; ")
        return Finding(name="model", state="bad", text=text, remedy=remedy or "see above")
    available = psutil.virtual_memory().available
    text = f"{seen.model_name}: needs {seen.needed_bytes / 1e9:.1f} GB of {available / 1e9:.1f} GB free"
    return Finding(name="model", state="good", text=text)


def gpu(found: Sequence[Gpu], *, has_triton: bool | None = None) -> Finding:
    """Whether --device cuda could serve. has_triton: None to look."""
    if not found:
        return Finding(name="gpu", state="good", text="none seen: Shoal serves on the CPU (--device cpu)")
    listed = ", ".join(f"{one.name} ({one.memory_bytes / 1e9:.0f} GB)" for one in found)
    try:
        check_gpus(found, triton=has_triton)
    except SpecError as error:
        what, _, remedy = str(error).removeprefix("device is cuda: ").partition("; ")
        text = f"{listed}: --device cuda cannot serve: {what}"
        return Finding(name="gpu", state="poor", text=text, remedy=remedy)
    return Finding(name="gpu", state="good", text=f"{listed}: --device cuda can serve")


def worst(found: list[Finding]) -> State:
    states = {one.state for one in found}
    return "bad" if "bad" in states else "poor" if "poor" in states else "good"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package) if importlib.util.find_spec(package) else None
    except importlib.metadata.PackageNotFoundError:
        return None
