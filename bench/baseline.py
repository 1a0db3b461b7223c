"""transformers as the baseline: its best variant, found by trying.

Dtype, threads, attention and experts implementation decide its speed, and which is best differs by machine
and batch. Knows nothing of HTTP; bench/hf.py does the generating in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from bench.pipe import Pipe, piped
from bench.timing import Answer, Prompt, answers_of

NAME = "transformers"
DTYPES = ("float32", "bfloat16")
ATTENTION = ("sdpa", "eager")
# Not batched_mm: it copies the weights of every (token, expert) pair, 15 s for one prompt of 128 tokens.
EXPERTS = ("grouped_mm", "eager")
PROBE_TOKENS = 5
PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}  # those that spin crawl beside a neighbour
NEAR = 0.6  # of the best: what comes so close is tried twice, for a noisy moment may have slowed it


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to run transformers; the defaults are its own."""

    dtype: str = DTYPES[0]
    threads: int = 1
    attention: str = ATTENTION[0]
    experts: str = EXPERTS[0]

    def __str__(self) -> str:
        return f"{self.dtype}, threads {self.threads}, {self.attention}, {self.experts}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A short run. tokens_per_s: what its times would make of the whole workload."""

    variant: Variant
    batch: int
    ttft_ms: float
    tpot_ms: float
    tokens_per_s: float


class Transformers:
    """The process. Its first answers come from the default variant; `find_best` chooses per batch."""

    name = NAME

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self.best: dict[int, Variant] = {}

    @property
    def pid(self) -> int:
        return self._pipe.pid

    def awake(self) -> AbstractContextManager[None]:
        """Its process sleeps on a pipe anyway."""
        return nullcontext()

    def answer(self, prompts: Sequence[Prompt], *, new_tokens: int, concurrency: int) -> list[Answer]:
        """Static batches of `concurrency`, by the best variant for that batch."""
        variant = self.best.get(concurrency, Variant())
        return self.generate(variant, prompts, new_tokens=new_tokens, batch=concurrency)

    def generate(
        self, variant: Variant, prompts: Sequence[Prompt], *, new_tokens: int, batch: int
    ) -> list[Answer]:
        order = {**asdict(variant), "prompts": prompts, "new_tokens": new_tokens, "batch": batch}
        return answers_of(self._pipe.ask(order))


@contextmanager
def transformers(checkpoint: Path) -> Iterator[Transformers]:
    """A fresh process; it ends with the block."""
    command = [sys.executable, "-m", "bench.hf", str(checkpoint)]
    with piped(NAME, command, {**os.environ, **PATIENT_THREADS}) as pipe:
        yield Transformers(pipe)


def find_best(
    probe: Callable[[Variant, int], Probe], *, batches: Sequence[int], threads: Sequence[int]
) -> list[Probe]:
    """Probes of what is worth trying: the implementations, then dtypes and threads, then the near ones."""
    probes: list[Probe] = []
    for batch in batches:
        ways = [Variant(attention=way, experts=experts) for way, experts in product(ATTENTION, EXPERTS)]
        found = [probe(variant, batch) for variant in ways]
        best = choose(found, batch)
        grid = [replace(best, dtype=dtype, threads=count) for dtype, count in product(DTYPES, threads)]
        found += [probe(variant, batch) for variant in grid if variant != best]
        most = max(one.tokens_per_s for one in found)
        near = {one.variant: None for one in found if one.tokens_per_s >= NEAR * most}
        probes += [*found, *(probe(variant, batch) for variant in near)]
    return probes


def choose(probes: Sequence[Probe], batch: int) -> Variant:
    """The variant of the fastest probe."""
    return max((one for one in probes if one.batch == batch), key=lambda one: one.tokens_per_s).variant


def probe_with(system: Transformers, prompts: Sequence[Prompt], new_tokens: int) -> Callable[..., Probe]:
    """`probe` for find_best: a few tokens, scaled to `new_tokens`."""

    def probe(variant: Variant, batch: int) -> Probe:
        answers = system.generate(variant, prompts[:batch], new_tokens=PROBE_TOKENS, batch=batch)
        return scaled(variant, answers[0], batch=batch, new_tokens=new_tokens)

    return probe


def scaled(variant: Variant, answer: Answer, *, batch: int, new_tokens: int) -> Probe:
    """What one answer of a static batch says of `new_tokens` tokens."""
    tpot_s = answer.tpot_s or 0.0
    total_s = answer.ttft_s + tpot_s * (new_tokens - 1)
    return Probe(
        variant=variant,
        batch=batch,
        ttft_ms=answer.ttft_s * 1e3,
        tpot_ms=tpot_s * 1e3,
        tokens_per_s=batch * new_tokens / total_s,
    )
