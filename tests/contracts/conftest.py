"""What others have written, run against the real model.

Each tool runs in the environment that `make contracts` makes (SHOAL_CONTRACTS names another), so that nothing
of it gets into ours. The server is a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.embedded import embedded_directory
from ingress.keys import add_key

ROOT = Path(__file__).parents[2]
TOOLS = Path(os.environ.get("SHOAL_CONTRACTS", ROOT / ".venv-contracts"))
CLIENTS = Path(__file__).parent / "clients"
LIMIT_S = 600
QUIET = {  # no tool fetches or reports anything
    "HF_DATASETS_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Model:
    """A served model, and how to run a tool that asks it."""

    url: str
    key: str
    folder: Path  # for what the tool writes

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """What the command says; it must end well. The first word is looked for among the tools."""
        tool = TOOLS / "bin" / str(command[0])
        words = [str(tool) if tool.exists() else str(command[0]), *map(str, command[1:])]
        env = {
            **os.environ,
            **QUIET,
            "SHOAL_URL": self.url,
            "SHOAL_KEY": self.key,
            "OPENAI_API_KEY": self.key,
        }
        env.pop("PYTHONPATH", None)
        ended = subprocess.run(
            words,
            cwd=cwd or self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        told = ended.stdout + ended.stderr
        assert ended.returncode == 0, told[-6000:]
        return told


def serve(folder: Path, context_tokens: int) -> Iterator[Model]:
    if not (TOOLS / "bin").exists():
        pytest.skip(f"the tools are not at {TOOLS}: run `make contracts`")
    key = add_key(folder / "keys.json", "contracts")
    command: Sequence[str] = (sys.executable, "-m", "tests.contracts.server", str(folder / "keys.json"))
    server = subprocess.Popen([*command, str(context_tokens)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        yield Model(url, key, folder)
        assert server.poll() is None, "the server has died"
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    yield from serve(tmp_path_factory.mktemp("model"), 2048)


@pytest.fixture(scope="session")
def short_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Whatever is asked of it soon comes to its end."""
    yield from serve(tmp_path_factory.mktemp("short"), 96)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return embedded_directory()
