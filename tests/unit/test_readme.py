"""What the README tells to type.

Its command line runs against a server, all else as far as it costs no minutes.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cluster import beacon
from cluster.admin import AdminServer
from cluster.cli import app
from tests.unit.app_server import Served, says
from tests.unit.test_admin import KEY, Still

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```\w*\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for block in FENCED for line in block.splitlines() if line]
INLINE = [span for line in TEXT.splitlines() for span in re.findall(r"`([^`]+)`", line)]
TYPED = [shlex.split(line, comments=True) for line in LINES]
TALK = [words for words in TYPED if words[0] == "shoal"]
TARGETS = sorted({one.split()[1] for one in (*LINES, *INLINE) if re.match(r"make [a-z]", one)})
MODULES = sorted({words[2] for words in TYPED if words[:2] == ["python", "-m"]})
OPTIONS = {  # what makes an example quick, and find our server
    "chat": ("--max-tokens", "4"),
    "complete": ("--max-tokens", "4"),
    "bench": ("--requests", "3", "--max-tokens", "4", "--prompt-tokens", "4"),
    "doctor": (),
    "status": (),
}


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words."""
    pending: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop()
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name.strip(), command
        else:
            pending.extend((f"{name} {word}", one) for word, one in inner.items())


def test_every_line_is_of_a_kind_that_is_tried():
    assert all(words[0] in ("make", "shoal") or words[:2] == ["python", "-m"] for words in TYPED)
    assert {words[1] for words in TALK} == {*OPTIONS, "--install-completion"}


@pytest.mark.parametrize("words", [words for words in TALK if words[1] in OPTIONS], ids=" ".join)
def test_a_command_line_of_the_readme_does_what_it_says(
    served: Served, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SHOAL_ADMIN_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    says(served, "x = 1")
    admin = AdminServer(Still(), "127.0.0.1", 0, KEY)
    place = () if words[1] in ("doctor", "status") else ("--url", str(served.http.base_url))
    try:
        with beacon.lit(admin.url, KEY):
            done = CliRunner().invoke(app, [*words[1:], *OPTIONS[words[1]], *place], input="17 + 25?\n")
    finally:
        admin.close()
    assert done.exit_code == 0 or words[1] == "doctor", done.output
    assert done.stdout and "Traceback" not in done.output
    if "--json" in words:
        assert json.loads(done.stdout)["content"]
    if "--html" in words:
        assert (tmp_path / words[words.index("--html") + 1]).read_text().startswith("<!doctype html>")


def test_a_shell_learns_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(
        "typer._completion_shared._get_shell_name", lambda: "bash"
    )  # whichever runs this test
    done = CliRunner().invoke(app, ["--install-completion"], prog_name="shoal")
    assert done.exit_code == 0, done.output
    assert "shoal" in (tmp_path / ".bashrc").read_text()
    asked = {"_SHOAL_COMPLETE": "complete_bash", "COMP_WORDS": "shoal res", "COMP_CWORD": "1"}
    assert CliRunner().invoke(app, [], prog_name="shoal", env=asked).stdout.split() == ["restart"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_made_can_be_made(target: str):
    """As far as to know what would be done, of parts that are there."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target, "PYTHON=python3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for module in {*re.findall(r"-m ((?:bench|demo|cluster)\.\w+)", done.stdout)}:
        assert importlib.util.find_spec(module), module
    for path in re.findall(r" (tests/[\w/.]+)", done.stdout):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_is_to_be_run_is_there(module: str):
    assert importlib.util.find_spec(module)


def in_passing() -> list[list[str]]:
    """The commands that a sentence names, those behind `make serve ARGS=` included."""
    found = [re.sub(r'^make serve ARGS="(.*)"$', r"shoal serve \1", one) for one in INLINE]
    return [shlex.split(one) for one in found if one.startswith("shoal ")]


@pytest.mark.parametrize("words", in_passing(), ids=" ".join)
def test_a_command_named_in_passing_has_these_options(words: list[str]):
    given = [one for one in words[1:] if one.startswith("--") and one != "--help"]
    name = next(name for name, _ in commands() if f"{' '.join(words[1:])} ".startswith(f"{name} "))
    known = {option for parameter in dict(commands())[name].params for option in parameter.opts}
    assert set(given) <= known


def test_every_command_with_a_result_tells_it_as_json_too():
    silent = {"up"}  # is Ray's own command until it is ended
    without = {
        name for name, one in commands() if not any("--json" in parameter.opts for parameter in one.params)
    }
    assert without == silent
