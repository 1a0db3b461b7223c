"""Each feature on and off, in turns, on the same burst of requests.

Engines in this process; with micro-batches, experts in another. A feature's worth is the ratio of the times
in which a round is done. Knows nothing of HTTP and of Ray.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from actors.build import local_exchange
from actors.engine import Engine
from actors.runner import Runner
from actors.scheduler import SchedulerLimits
from bench.mix import PROMPT_TOKENS, SHARED_TOKENS, Request, make_mix, with_prompts
from bench.outcome import Outcome, tokens_per_s
from bench.remote import built_expert, other_process, remote_engine
from bench.replay import replay
from bench.timing import Prompt
from cluster.embedded import embedded_directory
from ingress.encoding import encode_messages
from ingress.tokens import Tokenizer
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.load import load_decoder

CONTEXT_TOKENS = 512
RATE = 20.0  # of arrivals, a second: more than any engine here serves
SEQUENCES = 16
WHOLE_PROMPT = 2 * (max(PROMPT_TOKENS) + SHARED_TOKENS)  # no prompt of the mix is cut at this


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Of an engine. dtype: of its weights. is_remote: experts are in another process."""

    is_embedded: bool = False
    draft_tokens: int = 0
    prefix_cache: bool = True
    chunk_tokens: int = 128
    dtype: torch.dtype = torch.float32
    is_remote: bool = False
    micro_batches: int = 1


@dataclass(kw_only=True, slots=True)
class Comparison:
    """A feature's two sides. rounds: of each, its seconds and outcomes."""

    feature: str
    model: str
    rounds: dict[str, list[tuple[float, list[Outcome]]]] = field(
        default_factory=lambda: {"on": [], "off": []}
    )

    def figures(self) -> dict[str, Any]:
        """What a program reads: how many times as quick with the feature as without."""
        pairs = zip(self.rounds["off"], self.rounds["on"], strict=True)
        ratios = [off_s / on_s for (off_s, _), (on_s, _) in pairs]
        sides = {}
        for side, rounds in self.rounds.items():
            outcomes = [one for _, some in rounds for one in some]
            sides[side] = {
                "tokens_per_s": round(median(tokens_per_s(some) for _, some in rounds), 1),
                "ttft_ms": round(median(one.ttft_s for one in outcomes) * 1e3, 1),
                "tpot_ms": round(median(one.tpot_s for one in outcomes if one.num_tokens > 1) * 1e3, 2),
            }
        return {
            "feature": self.feature,
            "model": self.model,
            "ratio": round(median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            **sides,
        }


FEATURES: dict[str, tuple[Settings, Settings]] = {  # on, off
    "drafts (MTP)": (Settings(is_embedded=True, draft_tokens=1), Settings(is_embedded=True)),
    "prefix cache": (Settings(), Settings(prefix_cache=False)),
    "chunked prefill": (Settings(), Settings(chunk_tokens=WHOLE_PROMPT)),
    "int8": (Settings(dtype=torch.int8), Settings()),
    "two micro-batches": (
        Settings(is_remote=True, micro_batches=2),
        Settings(is_remote=True),
    ),
}


def compare(
    feature: str, checkpoint: Path, *, rounds: int, requests: int, seed: int, note: Callable[[str], None]
) -> Comparison:
    """Both sides, one after the other, as often as there are rounds; who goes first changes."""
    torch.set_num_threads(1)
    on, off = FEATURES[feature]
    comparison = Comparison(feature=feature, model="embedded" if on.is_embedded else "bench")
    with ExitStack() as stack:
        sides = {"on": on, "off": off}
        alike = {replace(own, micro_batches=1) for own in (on, off)}
        engines = {one: _engine(stack, one, checkpoint) for one in alike}

        def burst(settings: Settings, seed: int, count: int) -> list[Outcome]:
            engine = engines[replace(settings, micro_batches=1)]
            runner: Any = engine._runner
            overlap = runner.overlap
            overlap.micro_batches = settings.micro_batches
            return replay(engine, _requests(settings, seed, count))

        for settings in sides.values():
            burst(settings, seed - 1, 2)
        for number in range(rounds):
            for side in ("on", "off") if number % 2 else ("off", "on"):
                note(f"{feature} {side}, round {number + 1}")
                start_s = time.perf_counter()
                outcomes = burst(sides[side], seed + number, requests)
                comparison.rounds[side].append((time.perf_counter() - start_s, outcomes))
    return comparison


def _requests(settings: Settings, seed: int, count: int) -> list[Request]:
    mix = make_mix(seed, rate=RATE, seconds=float("inf"), longest=count)
    return with_prompts(mix, _questions(seed, count)) if settings.is_embedded else mix


def _questions(seed: int, count: int) -> list[Prompt]:
    """Sums, for the embedded model to work out: of random bytes no draft would hold."""
    tokenizer = Tokenizer.from_file(embedded_directory() / "tokenizer.json")
    random_ = random.Random(f"{seed}:sums")
    asked = [f"What is {random_.randrange(10**6)} + {random_.randrange(10**6)}?" for _ in range(count)]
    return [
        tokenizer.encode_prompt(encode_messages([{"role": "user", "content": text}], thinking=True))
        for text in asked
    ]


def _engine(stack: ExitStack, settings: Settings, checkpoint: Path) -> Engine:
    opened = Checkpoint.open(embedded_directory() if settings.is_embedded else checkpoint)
    limits = SchedulerLimits(
        max_sequences=SEQUENCES,
        chunk_tokens=settings.chunk_tokens,
        max_step_tokens=SEQUENCES * (1 + settings.draft_tokens) + 2 * settings.chunk_tokens,
    )
    if settings.is_remote:
        pipe = stack.enter_context(other_process(_serve, checkpoint))
        engine, _ = remote_engine(
            opened, [pipe.recv()], context_tokens=CONTEXT_TOKENS, num_sequences=SEQUENCES, limits=limits
        )
        return engine
    config, reader = opened.config_to_serve(settings.draft_tokens), opened.reader()
    runner = Runner(
        load_decoder(reader, config, settings.dtype, CONTEXT_TOKENS),
        local_exchange(reader, config, settings.dtype, "local"),
        num_pages=1 + SEQUENCES * (CONTEXT_TOKENS // PAGE_TOKENS + 1),
        draft_tokens=settings.draft_tokens,
    )
    return Engine(runner, context_tokens=CONTEXT_TOKENS, limits=limits, prefix_cache=settings.prefix_cache)


def _serve(pipe: Connection, checkpoint: Path) -> None:
    """Every expert in a process of its own."""
    server, port = built_expert(checkpoint, 0, of=1)
    pipe.send(port)
    server.run()
