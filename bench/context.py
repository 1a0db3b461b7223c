"""What a token costs as its context grows: DSA beside dense attention.

    python -m bench.context

One model twice in this process, experts local: as it is, and its weights as a deepseek_v3 model, which has no
indexer and attends to every token. At each context the two take turns: chunks of a prompt, then decoded
tokens. The past before those is drawn, since what a latent holds hardly changes what it costs; `--computed`
computes it. Times are CPU time of the one thread, which is what the clock says on a machine that does nothing
else. Knows nothing of HTTP and of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

import actors.runner
from actors.engine import Engine
from bench.context_report import CHUNK_TOKENS, Plan, Point, table, write
from bench.local import local_engine
from bench.machine import peak_memory
from bench.report import stdout_console
from bench.timing import Prompt, make_prompts
from cluster.embedded import embedded_directory
from model.batch import Chunk, build_batch
from model.cache import LatentCache
from model.checkpoint import Checkpoint
from model.decoder import Decoder
from model.indexer import choose_slots
from model.sampling import Sampling
from router.exchange import Exchange

DSA, DENSE = "DSA", "dense"
SHORTEST, LONGEST = 1024, 131072
ENDLESS = Sampling(max_tokens=LONGEST, temperature=0.0, ignore_eos=True)


def main(
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the embedded model.")] = None,
    longest: Annotated[int, typer.Option(min=SHORTEST, help="Contexts double up to this.")] = LONGEST,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Decoded in a round.")] = 16,
    computed: Annotated[bool, typer.Option("--computed", help="Compute the past, too.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write bench/results/context.json and docs/figures/context*.png.")
    ] = False,
) -> None:
    """Measure and print milliseconds a token, tokens/s of prefill and memory by context."""
    torch.set_num_threads(1)
    contexts = tuple(SHORTEST << n for n in range((longest // SHORTEST).bit_length()))
    plan = Plan(contexts=contexts, rounds=rounds, tokens=tokens, computed=computed)
    engines = make_engines(Checkpoint.open(checkpoint or embedded_directory()), contexts[-1])
    with _bars() as bars:
        task = bars.add_task("", total=len(contexts) * (1 + 2 * rounds))

        def note(what: str) -> None:
            bars.update(task, description=what)
            bars.advance(task)

        points = measure(engines, plan, note)
    stdout_console().print(table(points))
    if keep:
        write(points, plan)


def make_engines(checkpoint: Checkpoint, longest: int) -> dict[str, Engine]:
    """The model as it is, and without its indexer."""
    config = checkpoint.config_to_serve(draft_tokens=0)
    if config.indexer is None:
        raise typer.BadParameter("the model has no indexer: there is nothing to compare")
    configs = {DSA: config, DENSE: replace(config, indexer=None)}
    return {
        name: local_engine(checkpoint, config=one, context_tokens=longest, num_sequences=1)
        for name, one in configs.items()
    }


def measure(engines: dict[str, Engine], plan: Plan, note: Callable[[str], None]) -> list[Point]:
    """Every engine at every context, in turns. Each prompt begins with the one before, which is cached."""
    [text] = make_prompts("context", count=1, num_tokens=plan.contexts[-1])
    points: list[Point] = []
    for context in plan.contexts:
        note(f"{context} tokens: the past")
        prompt = text[: context - plan.decoded]
        here = {name: _begin(name, engine, context, prompt, plan) for name, engine in engines.items()}
        for number in range(plan.rounds):
            note(f"{context} tokens: prefill, round {number + 1}")
            for name, engine in engines.items():
                here[name].prefill.append(_steps(engine, 1))
        for number in range(plan.rounds):
            note(f"{context} tokens: decode, round {number + 1}")
            for name, engine in engines.items():
                with _indexer_timed() as index_s:
                    here[name].decode.append(_steps(engine, plan.tokens))
                here[name].index_s += index_s
        for engine in engines.values():
            engine.cancel("bench", str(context))
        points += here.values()
    return points


def _begin(name: str, engine: Engine, context: int, prompt: Prompt, plan: Plan) -> Point:
    """Submit the prompt and go through it up to the chunks that are to be timed.

    The last before those tells how much memory a chunk needs.
    """
    before = _num_computed(engine)
    engine.submit("bench", str(context), prompt, [], ENDLESS)
    with nullcontext() if plan.computed else drawn_past():
        while _num_computed(engine) - before < len(prompt) - (plan.rounds + 1) * CHUNK_TOKENS:
            engine.step()
    with peak_memory() as peak:
        engine.step()
    return Point(
        system=name,
        context=context,
        bytes_per_token=int(engine.stats()["cache_bytes_per_token"]),
        peak_bytes=peak[0] if peak else None,
    )


def _num_computed(engine: Engine) -> int:
    """Prompt tokens so far, cached ones too."""
    stats = engine.stats()
    return int(stats["prefill_tokens"] + stats["prefix_hit_tokens"])


def _steps(engine: Engine, count: int) -> list[float]:
    """CPU seconds of each of the next steps."""
    seconds = []
    for _ in range(count):
        start_s = time.thread_time()
        engine.step()
        seconds.append(time.thread_time() - start_s)
    return seconds


@contextmanager
def drawn_past() -> Iterator[None]:
    """Within the block steps compute nothing: latents and index keys are drawn, as large as norms make it."""
    generator = torch.Generator().manual_seed(0)

    def draw(
        decoder: Decoder,
        chunks: Sequence[Chunk],
        cache: LatentCache,
        exchange: Exchange,
        micro_batches: int,
    ) -> Tensor:
        batch = build_batch(chunks, index_topk=decoder.index_topk)
        num_rows = len(batch.slots_T)
        for latent_SC, index_SI in zip(cache.latent_SC, cache.index_SI, strict=True):
            for of in (latent_SC, index_SI):
                drawn = torch.randn(num_rows, of.shape[1], generator=generator)
                of.index_copy_(0, batch.slots_T, drawn.to(of.dtype))
        return torch.zeros(batch.num_tokens, decoder.config.hidden_size, dtype=decoder.dtype)

    with mock.patch.object(actors.runner, "forward", draw):
        yield


@contextmanager
def _indexer_timed() -> Iterator[list[float]]:
    """CPU seconds of every choice of keys within the block."""
    seconds: list[float] = []

    def timed(*args: Any) -> Tensor:
        start_s = time.thread_time()
        chosen = choose_slots(*args)
        seconds.append(time.thread_time() - start_s)
        return chosen

    with mock.patch("model.mla.choose_slots", timed):
        yield seconds


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description:<36}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    typer.run(main)
