"""Who is asked in the open loop: Shoal, transformers twice, llama.cpp, and who cannot be.

Each is up for the whole run and suspended but for its turns. Knows nothing of rates and limits.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx

from bench.arrivals import Ask, ask_all, ask_shoal, ask_transformers
from bench.baseline import PATIENT_THREADS, Variant, transformers
from bench.llama_process import LLAMA, llama_is_there, llama_of
from bench.machine import tree_peak_bytes
from bench.mix import Request
from bench.outcome import Outcome
from bench.replay import replay_batches
from bench.server import START_TIMEOUT_S, Server, ServerError, free_port, serving
from bench.timing import Answer

SHOAL = {"shoal tcp": ("--experts", "2"), "shoal local": ("--experts", "0")}
GENERATE, SERVE = "transformers generate", "transformers serve"
NAMES = (*SHOAL, GENERATE, SERVE, LLAMA)
# Whom this bench would like beside them, and why it cannot have them.
NO_MODEL = "not asked: on a CPU it has no sparse attention, so it cannot load a V3.2 checkpoint"
OTHERS = {"vllm (cpu)": ("vllm", NO_MODEL)}


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
    """Static batches in a process that sleeps on a pipe between orders; all cores are its own."""

    generate: Callable[..., list[Answer]]
    pid: int

    def awake(self) -> AbstractContextManager[None]:
        return nullcontext()

    def ask(self, requests: Sequence[Request], patience_s: float) -> list[Outcome]:
        return replay_batches(self.generate, requests, patience_s)

    @property
    def peak_bytes(self) -> int:
        return tree_peak_bytes(self.pid)


def start(stack: ExitStack, name: str, checkpoint: Path, threads: int) -> Contender:
    """Up, and asleep. Raises ServerError or PipeError."""
    if name == GENERATE:
        system = stack.enter_context(transformers(checkpoint))
        return Batches(partial(system.generate, Variant(threads=threads)), system.pid)
    if name == LLAMA:
        llama = stack.enter_context(llama_of(checkpoint))
        return Batches(partial(llama.generate, threads), llama.pid)
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
    if LLAMA in names and not llama_is_there():
        found[LLAMA] = "not installed: no package llama_cpp, and no interpreter in SHOAL_LLAMA_PYTHON has it"
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
