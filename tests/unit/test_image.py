"""The image: each step of the Dockerfile finds what it takes, and what comes out is not started as root.

It is not built here: no container builder could be had. Its steps were run once by hand (docs/operations.md).
"""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = re.sub(r"\\\n", " ", (ROOT / "k8s" / "Dockerfile").read_text(encoding="utf-8")).splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LET_IN = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)


def of(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def stage_of(target: str) -> list[tuple[str, str]]:
    """Its instructions, those of the stages that it is made from first."""
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for instruction, rest in STEPS:
        if instruction == "FROM":
            parent, _, name = re.fullmatch(r"(\S+)( AS (\S+))", rest).groups()  # type: ignore[union-attr]
            stages[name] = (parent, [])
        else:
            stages[name][1].append((instruction, rest))
    parent, own = stages[target]
    return [*(stage_of(parent) if parent in stages else []), *own]


def test_every_instruction_is_one_of_dockers_and_nothing_comes_from_elsewhere() -> None:
    assert {name for name, _ in STEPS} <= {
        "FROM",
        "RUN",
        "ENV",
        "ARG",
        "COPY",
        "WORKDIR",
        "USER",
        "ENTRYPOINT",
    }
    stages = [rest.split()[-1] for rest in of("FROM")]
    outside = [rest.split()[0] for rest in of("FROM") if rest.split()[0] not in stages]
    assert outside == ["python:3.11-slim-bookworm"], "a version, never latest"
    assert not re.search(r"curl|wget|sudo|chmod 777|ADD ", "\n".join(LINES))
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def test_every_source_that_is_copied_is_there_and_let_in() -> None:
    sources = [source for rest in of("COPY") for source in rest.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in LET_IN, f"{source} is not in .dockerignore"


def test_packages_of_the_system_leave_no_lists_and_bring_nothing_unasked() -> None:
    for rest in of("RUN"):
        if "apt-get install" in rest:
            assert "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists/*" in rest
            assert rest.index("apt-get update") < rest.index("apt-get install")
    assert "PIP_NO_CACHE_DIR=1" in " ".join(of("ENV"))


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_target_starts_our_command_from_its_own_environment_without_being_root(target: str) -> None:
    steps = stage_of(target)
    told = dict(steps)
    assert told["USER"] == "1000" and told["WORKDIR"] == "/home/shoal"
    assert any("useradd --uid 1000 --create-home shoal" in rest for name, rest in steps if name == "RUN")
    assert "PATH=/opt/shoal/bin:$PATH" in told["ENV"]
    [command] = shlex.split(told["ENTRYPOINT"].strip("[]"))
    module, _, function = PROJECT["project"]["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    last = [name for name, _ in steps]
    assert last.index("USER") > max(place for place, name in enumerate(last) if name == "RUN")


def test_what_the_wheel_holds_is_what_the_code_reads_beside_itself() -> None:
    """Files that are no Python, of packages that serve."""
    data = PROJECT["tool"]["setuptools"]["package-data"]
    packages = PROJECT["tool"]["setuptools"]["packages"]
    for package in packages:
        named = {file for pattern in data.get(package, ()) for file in (ROOT / package).glob(pattern)}
        there = {
            file
            for file in (ROOT / package).rglob("*")
            if file.is_file() and file.suffix != ".py" and not {"__pycache__", "results"} & set(file.parts)
        }
        assert there == {file for file in named if file.is_file()}, package
