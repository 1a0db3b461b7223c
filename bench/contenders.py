"""Who is asked in the open loop: Shoal, transformers twice, and who is named because it is not here.

Each is up for the whole run and suspended but for its turns. Knows nothing of rates and limits.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from bench.arrivals import Ask, ask_all, ask_shoal, ask_transformers
from bench.baseline import PATIENT_THREADS, Transformers, Variant, transformers
from bench.machine import tree_peak_bytes
from bench.mix import Request
from bench.outcome import Outcome
from bench.replay import replay_batches
from bench.server import START_TIMEOUT_S, Server, ServerError, free_port, serving

SHOAL = {"shoal tcp": ("--experts", "2"), "shoal local": ("--experts", "0")}
GENERATE, SERVE = "transformers generate", "transformers serve"
NAMES = (*SHOAL, GENERATE, SERVE)
# Whom this bench would like beside them, and why it cannot have them.
NO_DRIVER = "not asked: it reads GGUF only, and this bench writes no GGUF of a deepseek32 checkpoint"
NO_MODEL = "not asked: on a CPU it has no sparse attention, so it cannot load a V3.2 checkpoint"
OTHERS = {"llama-cpp-python": ("llama_cpp", NO_DRIVER), "vllm (cpu)": ("vllm", NO_MODEL)}


class Contender(Protocol):
    """What can be asked."""

    def awake(self) -> AbstractContextManager[None]:
        """Outside of the block it takes no CPU."""

    def ask(self, requests: Sequence[Request], patience_s: float) -> list[Outcome]:
        """In the order given; what is not whole so long after the last arrival is given up."""

    @property
    def peak_bytes(self) -> int:
        """Memory that its processes held at most, together."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server of the OpenAI API."""

    server: Server
    model: str
    words: Ask

    def awake(self) -> AbstractContextManager[None]:
        return self.server.awake()

    def ask(self, requests: Sequence[Request], patience_s: float) -> list[Outcome]:
        return ask_all(self.server.url, self.model, self.words, requests, patience_s)

    @property
    def peak_bytes(self) -> int:
        return tree_peak_bytes(self.server.pid)


@dataclass(frozen=True, slots=True)
class Batches:
    """transformers' `generate` on static batches; all cores are its own."""

    system: Transformers
    variant: Variant

    def awake(self) -> AbstractContextManager[None]:
        return self.system.awake()

    def ask(self, requests: Sequence[Request], patience_s: float) -> list[Outcome]:
        return replay_batches(self.system, self.variant, requests, patience_s)

    @property
    def peak_bytes(self) -> int:
        return tree_peak_bytes(self.system.pid)


def start(stack: ExitStack, name: str, checkpoint: Path, threads: int) -> Contender:
    """Up, and asleep. Raises ServerError or BaselineError."""
    if name == GENERATE:
        return Batches(stack.enter_context(transformers(checkpoint)), Variant(threads=threads))
    if name == SERVE:
        server = stack.enter_context(_transformers_serving(checkpoint, threads))
        return Served(server, str(checkpoint), ask_transformers)
    server = stack.enter_context(serving(checkpoint, SHOAL[name]))
    with server.awake():
        served = httpx.get(f"{server.url}/v1/models", timeout=START_TIMEOUT_S, trust_env=False)
    return Served(server, served.raise_for_status().json()["data"][0]["id"], ask_shoal)


def missing(names: Sequence[str] = NAMES) -> dict[str, str]:
    """By name, why it is not asked."""
    found = {
        name: reason if importlib.util.find_spec(module) else f"not installed: no package {module}"
        for name, (module, reason) in OTHERS.items()
    }
    if SERVE in names and not importlib.util.find_spec("accelerate"):
        found[SERVE] = "not installed: `transformers serve` needs the package accelerate"
    return found


@contextmanager
def _transformers_serving(checkpoint: Path, threads: int) -> Iterator[Server]:
    port = free_port()
    command = Path(sys.executable).with_name("transformers")
    arguments = ["serve", str(checkpoint), "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen(
            [str(command), *arguments], stdout=words, stderr=words, env=_environment(threads)
        )
        server = Server(f"http://127.0.0.1:{port}", process.pid)
        try:
            _await_health(server.url, process)
            yield server
        except ServerError:
            words.seek(0)
            raise ServerError(
                f"{SERVE} did not become ready: {' '.join(words.read().split())[-300:]}"
            ) from None
        finally:
            process.kill()
            process.wait()


def _environment(threads: int) -> Mapping[str, str]:
    return {**os.environ, **PATIENT_THREADS, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}


def _await_health(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise ServerError(f"{SERVE} is not there")
