"""What drafting gains: tokens/s with 0, 1, 2 ... drafts.

    python -m demo.speculation --rounds 3

The engine alone, experts local, the embedded model on held-out questions of its tasks; every depth in turn in
every round, so that a busy neighbour meets them all. Prints ratios to no drafts, and what was accepted. Knows
nothing of HTTP.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from actors.build import local_exchange
from actors.engine import Engine
from actors.runner import Runner
from demo.corpus import Encoder, draw, generator, make_encoder
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.load import load_decoder
from model.sampling import Sampling

CONTEXT_TOKENS = 1024
LONGEST_PROMPT = 512
CHECKPOINT = Path(__file__).parent / "checkpoint"


def main(
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 3,
    tokens: Annotated[int, typer.Option(help="New tokens of each sequence, at most.")] = 96,
    deepest: Annotated[int, typer.Option(help="Most drafts.")] = 2,
    temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0,
) -> None:
    """Print decode speed relative to no drafts."""
    torch.set_num_threads(1)
    checkpoint, encoder = Checkpoint.open(CHECKPOINT), make_encoder(CHECKPOINT)
    depths = range(deepest + 1)
    console = Console()
    for batch in (1, 16):
        engines = [make_engine(checkpoint, batch, depth) for depth in depths]
        rates: list[list[float]] = [[] for _ in depths]
        for number in range(rounds):
            prompts = held_out_prompts(encoder, number, 16)
            sampling = Sampling(max_tokens=tokens, temperature=temperature, seed=number)
            for depth in depths:
                groups = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
                rates[depth].append(decode_rate(engines[depth], groups, sampling))
        console.print(_table(batch, rates, [engine.stats() for engine in engines]))


def make_engine(checkpoint: Checkpoint, num_sequences: int, draft_tokens: int) -> Engine:
    """With room for num_sequences and every expert in it."""
    config, reader = checkpoint.config_to_serve(draft_tokens), checkpoint.reader()
    runner = Runner(
        load_decoder(reader, config, torch.float32, CONTEXT_TOKENS),
        local_exchange(reader, config, torch.float32, "local"),
        num_pages=1 + num_sequences * CONTEXT_TOKENS // PAGE_TOKENS,
        draft_tokens=draft_tokens,
    )
    return Engine(runner, context_tokens=CONTEXT_TOKENS)


def held_out_prompts(encoder: Encoder, seed: int, count: int) -> list[list[int]]:
    """Of the mixture that the model was trained on, as questions it has not seen."""
    rng = generator(seed, "speculation")
    prompts: list[list[int]] = []
    while len(prompts) < count:
        encoded = encoder.encode(draw(rng, "held_out"))
        if encoded.prompt <= LONGEST_PROMPT:
            prompts.append(encoded.ids[: encoded.prompt])
    return prompts


def decode_rate(engine: Engine, groups: list[list[list[int]]], sampling: Sampling) -> float:
    """Tokens/s after every sequence of a group has its first, groups one after another."""
    num_tokens, seconds = 0, 0.0
    for group in groups:
        for number, prompt in enumerate(group):
            engine.submit("bench", str(number), prompt, [], sampling)
        begun: set[str] = set()
        while len(begun) < len(group):
            begun |= {event.request_id for own in engine.step().values() for event in own}
        start_s = time.perf_counter()
        while engine.has_work:
            num_tokens += sum(len(event.token_ids) for own in engine.step().values() for event in own)
        seconds += time.perf_counter() - start_s
    return num_tokens / seconds


def _table(batch: int, rates: list[list[float]], stats: list[dict[str, float]]) -> Table:
    table = Table("drafts", "to none", "rounds", "accepted by place", title=f"{batch} at once")
    for depth, own in enumerate(rates):
        ratios = [rate / none for rate, none in zip(own, rates[0], strict=True)]
        accepted = [
            f"{stats[depth][f'accepted_{place}'] / max(1, stats[depth][f'drafted_{place}']):.2f}"
            for place in range(1, depth + 1)
        ]
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        table.add_row(str(depth), f"{median(ratios):.2f}", rounds, ", ".join(accepted))
    return table


if __name__ == "__main__":
    typer.run(main)
