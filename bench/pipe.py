"""A process that answers orders, a line of JSON for a line of JSON.

Its stderr is kept, to be quoted if it ends. Knows nothing of what is ordered.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any


class PipeError(RuntimeError):
    """The process ended; the text holds its last words."""


class Pipe:
    """The process, which sleeps while it has no order."""

    def __init__(self, name: str, process: subprocess.Popen[str], words: IO[str]) -> None:
        self._name = name
        self._process = process
        self._words = words

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, order: Mapping[str, Any]) -> Any:
        """Raises PipeError."""
        assert self._process.stdin is not None and self._process.stdout is not None, "started with pipes"
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the words below say why
        line = self._process.stdout.readline()
        if not line:
            self._words.seek(0)
            raise PipeError(f"{self._name} ended: {' '.join(self._words.read().split())[-600:]}")
        return json.loads(line)


@contextmanager
def piped(name: str, command: Sequence[str], env: Mapping[str, str]) -> Iterator[Pipe]:
    """A fresh process; it ends with the block."""
    with (
        tempfile.TemporaryFile("w+") as words,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words, text=True, env=env
        ) as process,
    ):
        try:
            yield Pipe(name, process, words)
        finally:
            process.terminate()
