"""What a stream feels when long prompts arrive.

`python -m bench.stall`: one sequence decodes on a local engine in this process, then long prompts come, and
a short one behind them. The longest gap between the stream's tokens, how long the short one waits for its
first, and when the last long one has its own. `--against DIR` runs the same file with the code of another
tree between its turns, so that both meet the same minutes of the machine. Times are CPU time of the one
thread, which is what the clock says on a machine that does nothing else. Knows nothing of HTTP and of Ray.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from actors.build import local_exchange
from actors.engine import Engine
from actors.runner import Runner
from actors.scheduler import SchedulerLimits
from bench.report import stdout_console
from bench.timing import make_prompts
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.load import load_decoder
from model.sampling import Sampling

CHECKPOINT = Path(__file__).parents[1] / "demo" / "checkpoint"
MAX_SEQUENCES, CHUNK_TOKENS = 64, 128  # as `shoal serve` has them, the step as long as it makes it
STREAM, SHORT = "stream", "short"
WARM_TOKENS, SHORT_TOKENS, CONTEXT_TOKENS = 40, 24, 4096
ENDLESS = Sampling(max_tokens=CONTEXT_TOKENS, temperature=0.0, ignore_eos=True)
ONE = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)

Figures = dict[str, float]  # milliseconds by what they measure


def main(
    num_long: Annotated[int, typer.Option(help="Long prompts that arrive at once.")] = 1,
    long_tokens: int = 4000,
    rounds: int = 3,
    against: Annotated[Path | None, typer.Option(help="A checkout to take turns with.")] = None,
    checkpoint: Path = CHECKPOINT,
    once: Annotated[bool, typer.Option("--once", help="One turn, as JSON.")] = False,
) -> None:
    """Measure and print the medians over the rounds."""
    if once:
        sys.stdout.write(json.dumps(turn(checkpoint, num_long, long_tokens)) + "\n")
        return
    trees = {"this tree": Path(__file__).parents[1], **({"the other": against} if against else {})}
    turns: dict[str, list[Figures]] = {name: [] for name in trees}
    arguments = ["--num-long", num_long, "--long-tokens", long_tokens, "--checkpoint", checkpoint.resolve()]
    for _ in range(rounds):
        for name, tree in trees.items():
            turns[name].append(_turn_of(tree, [str(argument) for argument in arguments]))
    stdout_console().print(_table(turns))


def turn(checkpoint_path: Path, num_long: int, long_tokens: int) -> Figures:
    """One engine, one stream, the long prompts, one short one."""
    torch.set_num_threads(1)
    engine = _engine(Checkpoint.open(checkpoint_path), num_long)
    [stream] = make_prompts(STREAM, count=1, num_tokens=SHORT_TOKENS)
    [short] = make_prompts(SHORT, count=1, num_tokens=SHORT_TOKENS)
    long = make_prompts("long", count=num_long, num_tokens=long_tokens)
    engine.submit("bench", STREAM, stream, [], ENDLESS)
    warm = [_step(engine) for _ in range(WARM_TOKENS)]
    began_s = time.process_time()
    for number, prompt in enumerate(long):
        engine.submit("bench", f"long-{number}", prompt, [], ONE)
    first: Figures = {}
    gaps: list[float] = []
    while len(first) <= num_long:
        seconds, told = _step(engine)
        gaps.append(seconds)
        since_ms = (time.process_time() - began_s) * 1e3
        first |= {name: since_ms for name in told if name != STREAM and name not in first}
        if len(gaps) == 2:
            engine.submit("bench", SHORT, short, [], ONE)
            short_s = time.process_time()
    waited_ms = first.pop(SHORT) - (short_s - began_s) * 1e3
    return {
        "gap without": statistics.median(seconds for seconds, _ in warm[8:]) * 1e3,
        "gap p50": statistics.median(gaps) * 1e3,
        "longest gap": max(gaps) * 1e3,
        "short prompt's first token": waited_ms,
        "last long prompt's": max(first.values()),
    }


def _step(engine: Engine) -> tuple[float, set[str]]:
    """Seconds until the stream's next token, and who had one."""
    start_s = time.process_time()
    told: set[str] = set()
    while STREAM not in told:
        told |= {event.request_id for own in engine.step().values() for event in own}
    return time.process_time() - start_s, told


def _engine(checkpoint: Checkpoint, num_long: int) -> Engine:
    config = checkpoint.config_to_serve(draft_tokens=0)
    reader = checkpoint.reader()
    decoder = load_decoder(reader, config, torch.float32, CONTEXT_TOKENS)
    limits = SchedulerLimits(
        max_sequences=MAX_SEQUENCES,
        chunk_tokens=CHUNK_TOKENS,
        max_step_tokens=MAX_SEQUENCES + 2 * CHUNK_TOKENS,
    )
    runner = Runner(
        decoder,
        local_exchange(reader, config, torch.float32, "local"),
        num_pages=1 + (num_long + 2) * (CONTEXT_TOKENS // PAGE_TOKENS),
    )
    return Engine(runner, context_tokens=CONTEXT_TOKENS, limits=limits)


def _turn_of(tree: Path, arguments: Sequence[str]) -> Figures:
    """This file, in a process of its own, with the modules of `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, __file__, *arguments, "--once"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def _table(turns: dict[str, list[Figures]]) -> Table:
    table = Table("milliseconds, median (least to most)", *turns)
    for name in next(iter(turns.values()))[0]:
        columns = ([figures[name] for figures in own] for own in turns.values())
        shown = (f"{statistics.median(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns)
        table.add_row(name, *shown)
    return table


if __name__ == "__main__":
    typer.run(main)
