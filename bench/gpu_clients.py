"""Clients in processes of their own.

One alone is slower than a GPU that serves. Knows nothing of what is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from types import TracebackType

from bench.load import load
from bench.timing import Answer, Prompt

PROCESSES = 8
SMALLEST_ID = 16  # those below are special


class Clients:
    """Ask one server until the block ends. num_ids: of which prompts are made."""

    def __init__(self, url: str, num_ids: int) -> None:
        self._url, self._num_ids = url, num_ids
        self._pool = ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"))

    def __enter__(self) -> Clients:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def prompts(self, seed: str, count: int, num_tokens: int) -> list[Prompt]:
        """Random; the same seed gives the same ones."""
        rng, end = random.Random(seed), SMALLEST_ID + self._num_ids
        return [[rng.randrange(SMALLEST_ID, end) for _ in range(num_tokens)] for _ in range(count)]

    def ask(self, prompts: list[Prompt], new_tokens: int, at_once: int) -> list[Answer]:
        """In the order of the prompts; times are of one clock. Raises LoadError."""
        return self.begin(prompts, new_tokens, at_once)()

    def begin(self, prompts: list[Prompt], new_tokens: int, at_once: int) -> Callable[[], list[Answer]]:
        """The same without waiting; what it returns waits."""
        shares = min(PROCESSES, at_once, len(prompts))
        ask = partial(load, self._url, new_tokens=new_tokens)
        asked = [
            self._pool.submit(
                ask, prompts[share::shares], concurrency=at_once // shares + (share < at_once % shares)
            )
            for share in range(shares)
        ]

        def answers() -> list[Answer]:
            told = [one.result() for one in asked]
            return [told[place % shares][place // shares] for place in range(len(prompts))]

        return answers
