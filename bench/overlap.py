"""What a second micro-batch gains or costs, by rows of a step and by distance of the experts.

    python -m bench.overlap

The bench checkpoint, an engine here and its experts in processes of their own over TCP; those answer a while
later than they would, as over a network; with --elsewhere they sleep for as long as they would compute, as if
the core were another machine's. Steps take turns, one batch and two, and each pair gives a ratio, so
that a noisy minute meets both. The clock's time: what is hidden is waiting. Knows nothing of HTTP and of Ray.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from statistics import median, quantiles
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from numpy.typing import NDArray
from rich.table import Table

from actors.engine import Engine
from actors.scheduler import SchedulerLimits
from bench.machine import command, describe
from bench.remote import built_expert, other_process, remote_engine
from bench.report import stdout_console
from bench.step import preset_directory
from bench.timing import make_prompts
from model.checkpoint import Checkpoint
from model.sampling import Sampling

RESULTS = Path(__file__).with_name("results")
PROMPT_TOKENS, CHUNK = 64, 128
WARM_STEPS = 2
MEASURED_CALLS = 14  # two steps' layers
WAYS = (1, 2)  # micro-batches


@dataclass(kw_only=True, slots=True)
class Point:
    """Steps of so many rows, experts so far away. seconds, waited (share): by micro-batches, pair by pair."""

    rows: int
    delay_ms: float
    seconds: dict[int, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    waited: dict[int, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})

    @property
    def ratios(self) -> list[float]:
        """Of every pair: how many times as quick two are as one."""
        return [one / two for one, two in zip(self.seconds[1], self.seconds[2], strict=True)]

    def figures(self) -> dict[str, Any]:
        low, middle, high = quantiles(self.ratios, n=4)
        return {
            "rows": self.rows,
            "delay_ms": self.delay_ms,
            **{f"ms_{way}": round(median(self.seconds[way]) * 1e3, 2) for way in WAYS},
            **{f"waiting_{way}": round(median(self.waited[way]), 3) for way in WAYS},
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "pairs": len(self.ratios),
        }


def main(
    rows: Annotated[list[int] | None, typer.Option(help="Decoding sequences. Repeatable.")] = None,
    delay_ms: Annotated[list[float] | None, typer.Option(help="Later answers. Repeatable.")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Of steps, at each point.")] = 12,
    experts: Annotated[int, typer.Option(min=1, help="Expert processes.")] = 1,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="Experts sleep for as long as they would compute.")
    ] = False,
    prefill: Annotated[bool, typer.Option(help=f"Chunks of {CHUNK}, too.")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Write bench/results/overlap*.json.")] = False,
) -> None:
    """Print milliseconds a step with one batch and with two, and how many times as quick two are."""
    torch.set_num_threads(1)
    sizes, points = [*(rows or [8, 16, 64]), *([CHUNK] if prefill else [])], []
    directory = preset_directory()
    for delay in delay_ms or [0.0, 0.2, 1.0, 5.0]:
        with ExitStack() as stack:
            pipes = [
                stack.enter_context(other_process(_serve, directory, number, experts, delay / 1e3, elsewhere))
                for number in range(experts)
            ]
            engine = _engine(directory, [pipe.recv() for pipe in pipes], max(sizes), pairs)
            points += [_measure(engine, size, delay, pairs, is_prefill=size == CHUNK) for size in sizes]
    stdout_console().print(_table(points))
    if keep:
        write(points, elsewhere=elsewhere)


def _engine(directory: Path, ports: list[int], num_sequences: int, pairs: int) -> Engine:
    longest = max(PROMPT_TOKENS + 4 * pairs, CHUNK * (2 * pairs + 2)) + CHUNK
    engine, _ = remote_engine(
        Checkpoint.open(directory),
        ports,
        context_tokens=longest,
        num_sequences=max(8, num_sequences // 4),
        limits=SchedulerLimits(max_sequences=num_sequences, max_step_tokens=num_sequences + 2 * CHUNK),
    )
    return engine


def _measure(engine: Engine, rows: int, delay_ms: float, pairs: int, *, is_prefill: bool) -> Point:
    """Steps of `rows` sequences that decode, or of a chunk of one long prompt."""
    endless = Sampling(max_tokens=4 * pairs + 8, temperature=0.0, ignore_eos=True)
    count, length = (1, CHUNK * (2 * pairs + 2)) if is_prefill else (rows, PROMPT_TOKENS)
    names = [f"{rows}:{number}" for number in range(count)]
    for name, prompt in zip(names, make_prompts(str(rows), count=count, num_tokens=length), strict=True):
        engine.submit("bench", name, prompt, [], endless)
    if is_prefill:
        engine.submit("bench", "beside", make_prompts("beside", count=1, num_tokens=1)[0], [], endless)
    decoded = 0
    while decoded < (1 if is_prefill else count):
        decoded += sum(event.first == 0 for own in engine.step().values() for event in own)
    point = Point(rows=rows, delay_ms=delay_ms)
    for number in range(-WARM_STEPS, pairs):
        for way in WAYS if number % 2 else WAYS[::-1]:
            seconds, waited_s = _step(engine, way)
            if number >= 0:
                point.seconds[way].append(seconds)
                point.waited[way].append(waited_s / seconds)
    engine.disown("bench")
    return point


def _step(engine: Engine, way: int) -> tuple[float, float]:
    """Seconds, and those of them that it waited for experts."""
    runner: Any = engine._runner
    runner.overlap.micro_batches = way
    waited_s, start_s = runner.exchange.counters.waited_s, time.perf_counter()
    engine.step()
    return time.perf_counter() - start_s, runner.exchange.counters.waited_s - waited_s


def _serve(pipe: Connection, directory: Path, number: int, of: int, delay_s: float, elsewhere: bool) -> None:
    """An expert process that takes up what arrives after delay_s."""
    server, port = built_expert(directory, number, of)
    server._listener.poll = late(server._listener.poll, delay_s)
    if elsewhere:
        server._held.forward = asleep(server._held.forward)
    pipe.send(port)
    server.run()


def asleep(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """In place of `forward`: sleeps for as long as it computes, measured by its first calls of each size."""
    took_s: defaultdict[int, list[float]] = defaultdict(list)

    def forward_or_sleep(
        layer: int, rows_RD: torch.Tensor, row_P: NDArray[np.int32], expert_P: NDArray[np.int32]
    ) -> torch.Tensor:
        seconds = took_s[len(row_P).bit_length()]
        if len(seconds) < MEASURED_CALLS:
            start_s = time.thread_time()
            out_PD = forward(layer, rows_RD, row_P, expert_P)
            seconds.append(time.thread_time() - start_s)
            return out_PD
        time.sleep(median(seconds))
        return rows_RD[torch.from_numpy(row_P)]

    return forward_or_sleep


def late(poll: Callable[[float | None], list[Any]], delay_s: float) -> Callable[[float | None], list[Any]]:
    """`poll`, whose arrivals come delay_s later, one at a time; the way goes on while the expert computes."""
    if not delay_s:
        return poll
    arrived: SimpleQueue[tuple[float, Any]] = SimpleQueue()

    def listen() -> None:
        while True:
            for arrival in poll(None):
                arrived.put((time.perf_counter() + delay_s, arrival))

    def poll_late(timeout_s: float | None) -> list[Any]:
        due_s, arrival = arrived.get()
        time.sleep(max(0.0, due_s - time.perf_counter()))
        return [arrival]

    threading.Thread(target=listen, daemon=True).start()
    return poll_late


def _table(points: list[Point]) -> Table:
    table = Table("answers later by ms", "rows", title="Two micro-batches beside one", title_justify="left")
    for heading in ("ms, one", "ms, two", "times as quick", "quartiles", "waiting, one", "two"):
        table.add_column(heading, justify="right")
    for point in points:
        got = point.figures()
        low, high = got["quartiles"]
        table.add_row(
            f"{point.delay_ms:g}",
            f"{point.rows}{' (chunk)' if point.rows == CHUNK else ''}",
            f"{got['ms_1']:.1f}",
            f"{got['ms_2']:.1f}",
            f"[bold]{got['ratio']:.2f}[/]",
            f"{low:.2f}-{high:.2f}",
            f"{got['waiting_1']:.0%}",
            f"{got['waiting_2']:.0%}",
        )
    return table


def write(points: list[Point], *, elsewhere: bool) -> None:
    """The JSON that the documents quote."""
    run = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command("bench.overlap"),
        "elsewhere": elsewhere,
        "machine": describe(),
        "load_after": round(psutil.getloadavg()[0], 1),
        "measured": [point.figures() for point in points],
    }
    name = "overlap-elsewhere.json" if elsewhere else "overlap.json"
    (RESULTS / name).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
