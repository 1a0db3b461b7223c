"""llama.cpp as a process, with a checkpoint made into a GGUF for it.

Under this interpreter or, since llama-cpp-python is built from source, one of its own that the environment
names. Knows nothing of what is compared; bench/llama.py is the process.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bench.baseline import PATIENT_THREADS
from bench.gguf_layout import write_gguf
from bench.pipe import Pipe, piped
from bench.timing import Answer, Prompt, answers_of
from model.checkpoint import Checkpoint

LLAMA = "llama.cpp"
PYTHON = "SHOAL_LLAMA_PYTHON"
ROOT = Path(__file__).parents[1]
LAST_WORDS = {"GGML_NO_BACKTRACE": "1"}  # which would bury what failed


class Llama:
    """One GGUF."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    @property
    def pid(self) -> int:
        return self._pipe.pid

    def generate(
        self, threads: int, prompts: Sequence[Prompt], *, new_tokens: int, batch: int, exact: bool = False
    ) -> list[Answer]:
        """Greedy, in static batches. exact: nothing rounded to 16 bits on the way, which is slower."""
        order = {
            "threads": threads,
            "prompts": prompts,
            "new_tokens": new_tokens,
            "batch": batch,
            "exact": exact,
        }
        return answers_of(self._pipe.ask(order))

    def logits(self, prompt: Prompt) -> Tensor:
        """Of every token, [tokens, vocabulary] fp32, nothing rounded on the way."""
        with tempfile.NamedTemporaryFile() as file:
            told = self._pipe.ask({"prompt": prompt, "logits_to": file.name})
            return torch.frombuffer(bytearray(file.read()), dtype=torch.float32).view(told["shape"])


def llama_is_there() -> bool:
    """Whether an interpreter that has llama_cpp is known."""
    other = os.environ.get(PYTHON)
    if other is None:
        return importlib.util.find_spec("llama_cpp") is not None
    looked = [other, "-c", "import importlib.util, sys; sys.exit(not importlib.util.find_spec('llama_cpp'))"]
    try:
        return subprocess.run(looked, check=False, timeout=60).returncode == 0
    except OSError:
        return False


@contextmanager
def llama_of(checkpoint: Path, weights: torch.dtype = torch.bfloat16) -> Iterator[Llama]:
    """A fresh process, and its GGUF, until the block ends. Raises GgufError or CheckpointError."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.gguf"
        write_gguf(Checkpoint.open(checkpoint), file, weights)
        command = [os.environ.get(PYTHON, sys.executable), "-m", "bench.llama", str(file)]
        env = {**os.environ, **PATIENT_THREADS, **LAST_WORDS, "PYTHONPATH": str(ROOT)}
        with piped(LLAMA, command, env) as pipe:
            yield Llama(pipe)
