"""What counting and being scraped costs: one engine, decoding, with and without, turn about.

Turns of some steps alternate on the same sequences, so that whatever else the machine does falls on both.
Time is that of this process' processor. With: all that is counted, and a scrape of every metric per turn,
which lasts less than a second: oftener than Prometheus asks. Knows nothing of sockets.

python -m bench.watching
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch

from actors.counters import Laps
from actors.engine import Engine
from actors.exposition import exposition
from actors.profile import Profile
from actors.runner import Runner
from bench.local import local_engine
from cluster.embedded import embedded_directory
from model.checkpoint import Checkpoint
from model.sampling import Sampling
from router.load import Edge, ExpertLoad

CONTEXT = 2048
PROMPT_TOKENS = 32


class NoLaps(Laps):
    def lap(self, part: str) -> None:
        """Nothing."""


class NoLoad(ExpertLoad):
    def count(self, place: int, expert_P: Any) -> None:
        """Nothing."""

    def mark(self) -> None:
        """Nothing."""


class NoEdge(Edge):
    def note_sent(self, pairs: int, num_bytes: int) -> None:
        """Nothing."""

    def note_answer(self, seconds: float, num_bytes: int) -> None:
        """Nothing."""


class NoProfile(Profile):
    def next(self) -> None:
        """Nothing is timed."""


class Counting:
    """What an engine counts with, to be taken away and given back."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._exchange = engine, engine._runner.exchange
        load = self._exchange.load
        assert isinstance(engine._runner, Runner), "one without a GPU"
        self._runner = engine._runner
        self._with = engine.counters.laps, load, dict(self._exchange.edges), self._runner.profile
        edges = {actor: NoEdge() for actor in self._exchange.edges}
        self._without = NoLaps(), NoLoad(*load.pairs().shape), edges, NoProfile()

    def set(self, *, is_on: bool) -> None:
        laps, load, edges, profile = self._with if is_on else self._without
        self._engine.counters.laps, self._exchange.load = laps, load
        self._exchange.edges.update(edges)
        self._runner.profile = profile


def compare(engine: Engine, turns: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of processor per step, of each turn: with and without."""
    counting = Counting(engine)
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * turns):
        is_on = turn % 2 == 0
        counting.set(is_on=is_on)
        start_s = time.process_time()
        for _ in range(steps):
            engine.step()
        if is_on:
            exposition(engine.samples)
        taken[0 if is_on else 1].append((time.process_time() - start_s) / steps)
    counting.set(is_on=True)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(embedded_directory())
    engine = local_engine(checkpoint, context_tokens=CONTEXT, num_sequences=flags.sequences)
    generator = torch.Generator().manual_seed(0)
    greedy = Sampling(max_tokens=CONTEXT - PROMPT_TOKENS, temperature=0.0, ignore_eos=True)
    for number in range(flags.sequences):
        prompt = torch.randint(16, 272, (PROMPT_TOKENS,), generator=generator).tolist()
        assert engine.submit("bench", str(number), prompt, [], greedy) is None
    while engine.counters.decode_tokens < flags.sequences * 4:  # past the prompts
        engine.step()
    on, off = compare(engine, flags.turns, flags.steps)
    ratios = [a / b for a, b in zip(on, off, strict=True)]
    print(f"with    {1e3 * median(on):.3f} ms a step of {flags.sequences} tokens")
    print(f"without {1e3 * median(off):.3f} ms")
    print(f"with / without: median {median(ratios):.4f}, of medians {median(on) / median(off):.4f}")


if __name__ == "__main__":
    main()
