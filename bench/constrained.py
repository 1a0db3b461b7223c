"""What a grammar costs the tokens per second.

`python -m bench.constrained`: the embedded model in an engine of this process, sequences with and without a
JSON schema in turn. Both make as many tokens from as many prompts. Knows nothing of HTTP and of Ray.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from actors.engine import Engine
from actors.matchers import matcher_of
from bench.local import local_engine
from bench.report import stdout_console
from bench.timing import make_prompts
from cluster.embedded import embedded_directory
from ingress.json_grammar import JsonRules
from model.checkpoint import Checkpoint
from model.grammar import Grammars
from model.sampling import Sampling

PROMPT_TOKENS = 64
SCHEMA = {
    "type": "array",
    "minItems": 1000,  # longer than any answer here
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "kind": {"enum": ["person", "place", "thing"]},
            "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,6}$"}, "maxItems": 3},
        },
        "required": ["name", "age", "kind", "tags"],
    },
}


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one round: by the clock, and of this thread's processor."""

    wall_s: float
    cpu_s: float


def main(
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the embedded model.")] = None,
    concurrency: Annotated[int, typer.Option(help="Sequences at once.")] = 16,
    tokens: Annotated[int, typer.Option(help="New tokens of each.")] = 96,
    rounds: Annotated[int, typer.Option(help="Of each kind, in turn.")] = 5,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
) -> None:
    """Print tokens/s with and without, and the ratio."""
    torch.set_num_threads(1)
    directory = checkpoint or embedded_directory()
    opened = Checkpoint.open(directory)
    config = opened.config_to_serve(draft_tokens=0)
    engine = local_engine(opened, context_tokens=PROMPT_TOKENS + tokens + 1, num_sequences=concurrency)
    grammars = Grammars(directory, vocab_size=config.vocab_size, end_ids=config.eos_token_ids)
    free = Sampling(max_tokens=tokens, temperature=temperature, ignore_eos=True)
    rule = JsonRules(is_strict=True).rule(SCHEMA, "schema")
    held = Sampling(max_tokens=tokens, temperature=temperature, grammar=f"start: {rule}\n")
    kinds = {"free": free, "held to a schema": held}
    for sampling in kinds.values():
        _round(engine, grammars, sampling, concurrency, "warm")
    taken: dict[str, list[Round]] = {kind: [] for kind in kinds}
    for place in range(rounds):
        for kind, sampling in kinds.items():
            taken[kind].append(_round(engine, grammars, sampling, concurrency, str(place)))
    console, made = stdout_console(), concurrency * tokens
    for kind, own in taken.items():
        wall_s = statistics.median(one.wall_s for one in own)
        cpu_s = statistics.median(one.cpu_s for one in own)
        console.print(f"{kind}: {made / wall_s:.0f} tokens/s, {made / cpu_s:.0f} per CPU second")
    pairs = list(zip(*taken.values(), strict=True))
    for name in ("wall_s", "cpu_s"):
        ratios = [getattr(one, name) / getattr(other, name) for one, other in pairs]
        shown = ", ".join(f"{ratio:.3f}" for ratio in sorted(ratios))
        console.print(f"tokens per {name}: {statistics.median(ratios):.3f} of free ({shown})")


def _round(engine: Engine, grammars: Grammars, sampling: Sampling, concurrency: int, seed: str) -> Round:
    """From the first token of all on: prefill has no masks to compute."""
    begun = grammars.compile(sampling.grammar) if sampling.grammar else None
    for place, prompt in enumerate(make_prompts(seed, count=concurrency, num_tokens=PROMPT_TOKENS)):
        matcher = None if begun is None else matcher_of(grammars, begun, sampling)
        assert engine.submit("bench", str(place), prompt, [], sampling, matcher=matcher) is None
    num_begun = 0
    while num_begun < concurrency:
        num_begun += sum(event.first == 0 for own in engine.step().values() for event in own)
    wall_s, cpu_s = time.perf_counter(), time.thread_time()
    while engine.has_work:
        engine.step()
    return Round(time.perf_counter() - wall_s, time.thread_time() - cpu_s)


if __name__ == "__main__":
    typer.run(main)
