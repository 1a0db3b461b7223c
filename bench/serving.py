"""Shoal beside transformers: tokens/s, TTFT, TPOT.

`python -m bench.serving`, or `make bench-closed`. Every system is up for the whole run and suspended but for
its turns: rounds go A B C A B C, so that a noisy minute of the machine hits all of them.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Annotated, Protocol

import psutil
import typer
from rich.console import Console

from bench.baseline import NAME as BASELINE
from bench.baseline import Transformers, choose, find_best, probe_with, transformers
from bench.load import LoadError, load
from bench.machine import command, cpu_times, describe, foreign_cores
from bench.pipe import PipeError
from bench.report import LOCAL, LOCAL_THREADS, LOCAL_TWO, TCP, Run, as_json, render, stdout_console
from bench.server import Server, ServerError, serving
from bench.timing import Answer, Prompt, Round, make_prompts

PRESET = "bench"
RESULTS = Path(__file__).with_name("results") / "serving.json"
FLAGS = {
    TCP: ("--experts", "2"),
    LOCAL: ("--experts", "0"),
    LOCAL_THREADS: ("--experts", "0", "--threads", "2"),
    LOCAL_TWO: ("--experts", "0", "--attention", "2"),
}
SYSTEMS = (*FLAGS, BASELINE)
MANY = 16
BUSY_LOAD = 1.0
WARM_TOKENS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What every system is asked. requests: (at concurrency 1, at MANY) of one round."""

    prompt_tokens: int = 128
    new_tokens: int = 64
    rounds: int = 3
    requests: tuple[int, int] = (4, 32)
    seed: int = 0
    dtype: str = "float32"

    def prompts(self, name: str, count: int) -> list[Prompt]:
        """Other ones for every name: no system may have seen them before."""
        return make_prompts(f"{self.seed}:{name}", count=count, num_tokens=self.prompt_tokens)


class System(Protocol):
    """What can be measured."""

    def awake(self) -> AbstractContextManager[None]:
        """Outside of the block it takes no CPU."""

    def answer(self, prompts: Sequence[Prompt], *, new_tokens: int, concurrency: int) -> list[Answer]:
        """In the order of the prompts."""


@dataclass(frozen=True, slots=True)
class Shoal:
    """A running `shoal serve`."""

    server: Server

    def awake(self) -> AbstractContextManager[None]:
        return self.server.awake()

    def answer(self, prompts: Sequence[Prompt], *, new_tokens: int, concurrency: int) -> list[Answer]:
        return load(self.server.url, prompts, new_tokens=new_tokens, concurrency=concurrency)


class Narrator:
    """One line on stderr for whatever takes its time."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._started_s = monotonic()

    @contextmanager
    def doing(self, what: str) -> Iterator[list[str]]:
        """Words put into the list end the line."""
        start_s, words = monotonic(), list[str]()
        with self.console.status(what):
            yield words
        took = f"{monotonic() - start_s:.1f} s"
        self.console.print(
            f"[{start_s - self._started_s:4.0f} s] {', '.join([what, *words, took])}",
            markup=False,
            soft_wrap=True,
        )


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help=f"One short round, no {LOCAL_TWO}, transformers as it comes.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"One of: {', '.join(SYSTEMS)}. Repeatable.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the bench preset.")] = None,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    rounds: int = 3,
    seed: int = 0,
    dtype: Annotated[str, typer.Option(help="Of the Shoal systems.")] = "float32",
    json_path: Annotated[
        Path | None, typer.Option("--json", help=f"Default of a whole run: bench/results/{RESULTS.name}.")
    ] = None,
) -> None:
    """Measure every system on one checkpoint and print the tables."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end what was started, too
    narrator = Narrator()
    workload = Workload(
        prompt_tokens=prompt_tokens, new_tokens=new_tokens, rounds=rounds, seed=seed, dtype=dtype
    )
    if quick:
        workload = replace(workload, rounds=1, new_tokens=min(new_tokens, 32), requests=(2, MANY))
    names = only or [name for name in SYSTEMS if not (quick and name == LOCAL_TWO)]
    unknown = set(names) - set(SYSTEMS)
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: expected {', '.join(SYSTEMS)}", param_hint="--only")
    load_before = psutil.getloadavg()[0]
    if load_before > BUSY_LOAD:
        narrator.console.print(f"the machine is busy (load {load_before:.1f}): figures will be low and noisy")
    try:
        run = measure(workload, names, checkpoint or _checkpoint(narrator), narrator, calibrate=not quick)
    except (ServerError, PipeError, LoadError) as error:
        narrator.console.print(f"[bold red]error[/] {error}")
        raise typer.Exit(1) from None
    machine = describe()
    shown = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command("bench.serving"),
        "load_before": load_before,
        "checkpoint": f"preset {PRESET}, seed 0" if checkpoint is None else "given by --checkpoint",
        **asdict(workload),
    }
    stdout_console().print(render(run, shown, machine))
    target = json_path or (RESULTS if not quick and not only else None)
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(as_json(run, shown, machine), indent=1) + "\n", encoding="utf-8")


def measure(
    workload: Workload, names: Sequence[str], checkpoint: Path, narrator: Narrator, *, calibrate: bool
) -> Run:
    """Start the named systems, warm them, and take turns."""
    run = Run()
    with ExitStack() as stack:
        systems = {name: _start(stack, name, checkpoint, workload, narrator) for name in names}
        baseline = systems.get(BASELINE)
        if calibrate and isinstance(baseline, Transformers):
            _calibrate(run, baseline, workload, narrator)
        for turn in range(workload.rounds):
            for concurrency, count in zip((1, MANY), workload.requests, strict=True):
                prompts = workload.prompts(f"{turn}:{concurrency}", count)
                for name, system in systems.items():
                    if (name, concurrency) == (LOCAL_TWO, 1):
                        continue  # one request keeps one actor busy: it would be LOCAL again
                    what = f"round {turn + 1}/{workload.rounds}: {name}, {concurrency} at once"
                    with narrator.doing(what) as words:
                        one = _measure(system, prompts, workload.new_tokens, concurrency)
                        words.append(f"{one.tokens_per_s:.1f} tokens/s")
                    run.add(name, concurrency, one)
    return run


def _start(stack: ExitStack, name: str, checkpoint: Path, workload: Workload, narrator: Narrator) -> System:
    """A system that has answered once at each concurrency."""
    with narrator.doing(f"starting {name}"):
        if name == BASELINE:
            system: System = stack.enter_context(transformers(checkpoint))
        else:
            flags = [*FLAGS[name], "--dtype", workload.dtype]
            system = Shoal(stack.enter_context(serving(checkpoint, flags)))
        with system.awake():
            for concurrency in (1, MANY):
                prompts = workload.prompts(f"warm:{concurrency}", concurrency)
                system.answer(prompts, new_tokens=WARM_TOKENS, concurrency=concurrency)
    return system


def _calibrate(run: Run, baseline: Transformers, workload: Workload, narrator: Narrator) -> None:
    """Let transformers run at its best."""
    with narrator.doing("finding the fastest variant of transformers") as words:
        probe = probe_with(baseline, workload.prompts("probe", MANY), workload.new_tokens)
        threads = sorted({1, 2, psutil.cpu_count() or 1})
        run.probes = find_best(probe, batches=(1, MANY), threads=threads)
        run.best = {batch: choose(run.probes, batch) for batch in (1, MANY)}
        baseline.best = run.best
        words += [f"at {batch}: {variant}" for batch, variant in run.best.items()]


def _measure(system: System, prompts: Sequence[Prompt], new_tokens: int, concurrency: int) -> Round:
    with system.awake():
        warm = make_prompts("turn", count=1, num_tokens=len(prompts[0]))
        system.answer(warm, new_tokens=WARM_TOKENS, concurrency=1)
        before = cpu_times()
        answers = system.answer(prompts, new_tokens=new_tokens, concurrency=concurrency)
        return Round(answers=tuple(answers), foreign_cores=foreign_cores(before, cpu_times()))


def _checkpoint(narrator: Narrator) -> Path:
    """The preset, written once into the cache directory."""
    # Imported late: torch is not needed where the checkpoint is there already.
    from cluster.spec import cache_directory

    directory = cache_directory() / f"{PRESET}-1"
    if not (directory / "model.safetensors.index.json").exists():
        from cluster.random_model import write_checkpoint

        with narrator.doing("writing the checkpoint"):
            write_checkpoint(directory, PRESET, seed=0)
    return directory


if __name__ == "__main__":
    typer.run(main)
