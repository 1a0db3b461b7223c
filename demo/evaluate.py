"""The evaluation as a command: serve, ask, count.

`python -m demo.evaluate`, or `make evaluate`. Knows nothing of what is asked (demo/exam.py).
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.server import ServerError, serving
from demo.client import EndpointError, connected
from demo.evaluation import Evaluation, Outcome, Score, scores_by, write_evaluation
from demo.exam import Question, ask_all, questions
from demo.sample import Fact

RESULTS = Path(__file__).with_name("results") / "evaluation.json"
CHECKPOINT = Path(__file__).with_name("checkpoint")
SERVE_FLAGS = ("--experts", "0")  # quickest on a small machine; what is answered does not depend on it
CONCURRENCY = 16


def _thinking(one: Outcome) -> str:
    return "with thinking" if one.thinking else "without thinking"


# What the outcomes of each task are grouped by, in the order of the table.
GROUPS: tuple[tuple[str, Callable[[Outcome], Fact | None]], ...] = (
    ("sql", lambda one: f"{one.facts['joins']} joins"),
    ("sql", lambda one: "all"),
    ("arithmetic", lambda one: f"{one.facts['digits']} digits, {_thinking(one)}"),
    ("arithmetic", lambda one: f"all, {_thinking(one)}"),
    ("tool", lambda one: one.facts["part"]),
    ("needle", lambda one: f"{one.facts['tokens']:>4} tokens"),
    ("needle", lambda one: "all"),
    ("about", lambda one: "all"),
)


def main(
    url: Annotated[str, typer.Option(help="A served endpoint; without it the checkpoint is served.")] = "",
    checkpoint: Annotated[Path, typer.Option(help="What to serve where no URL is given.")] = CHECKPOINT,
    dtype: Annotated[str, typer.Option(help="In which it is served then.")] = "float32",
    samples: Annotated[int, typer.Option(min=1, help="Per task; needles share them out.")] = 300,
    seed: int = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 512,
    out: Annotated[Path, typer.Option(help="Where the outcomes go.")] = RESULTS,
    as_json: Annotated[bool, typer.Option("--json", help="The scores as JSON on stdout.")] = False,
) -> None:
    """Ask held-out samples of every task and count the right answers."""
    console = Console(stderr=True, highlight=False)
    command = f"python -m demo.evaluate --samples {samples} --seed {seed} --max-tokens {max_tokens}"
    command += f" --dtype {dtype}" if dtype != "float32" else ""
    start_s = monotonic()
    try:
        with _endpoint(url, checkpoint, dtype, console) as place:
            model, outcomes = ask(place, questions(seed, samples), max_tokens=max_tokens, console=console)
    except (ServerError, EndpointError) as error:
        console.print(f"[bold red]error[/] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    seconds = round(monotonic() - start_s, 1)
    evaluation = Evaluation(
        command=command, seed=seed, samples=samples, model=model, seconds=seconds, outcomes=outcomes
    )
    write_evaluation(out, evaluation)
    console.print(f"{len(outcomes)} answers of {model} in {seconds:.0f} s: {out.name}")
    if as_json:
        typer.echo(json.dumps(as_dict(outcomes), indent=1))
    else:
        Console(highlight=False).print(table(outcomes))


def ask(
    url: str, asked: Sequence[Question], *, max_tokens: int, console: Console
) -> tuple[str, list[Outcome]]:
    """The model's name and all outcomes, with a progress bar; raises EndpointError."""
    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("asking", total=len(asked))

        async def work() -> tuple[str, list[Outcome]]:
            async with connected(url, concurrency=CONCURRENCY) as client:
                outcomes = await ask_all(
                    client,
                    asked,
                    concurrency=CONCURRENCY,
                    max_tokens=max_tokens,
                    done=lambda: progress.advance(bar),
                )
                return client.model, outcomes

        return asyncio.run(work())


def summary(outcomes: Iterable[Outcome]) -> Iterator[tuple[str, str, Score]]:
    """Task, group, score; tasks that were not asked are left out."""
    known = list(outcomes)
    for task, key in GROUPS:
        groups = scores_by((one for one in known if one.task == task), key)
        yield from ((task, str(group).strip(), found) for group, found in groups.items())


def table(outcomes: Iterable[Outcome]) -> Table:
    """What a person reads."""
    shown = Table("task", "", title="right answers", title_justify="left")
    for heading in ("right", "of", "%", "95 % interval"):
        shown.add_column(heading, justify="right")
    for task, group, one in summary(outcomes):
        low, high = one.interval
        shown.add_row(
            task,
            group,
            str(one.right),
            str(one.of),
            f"{100 * one.share:.1f}",
            f"{100 * low:.1f}-{100 * high:.1f}",
        )
    return shown


def as_dict(outcomes: Iterable[Outcome]) -> dict[str, dict[str, Any]]:
    """What a program reads: task -> group -> figures."""
    found: dict[str, dict[str, Any]] = {}
    for task, group, one in summary(outcomes):
        low, high = one.interval
        figures = {"right": one.right, "of": one.of, "share": one.share, "low": low, "high": high}
        found.setdefault(task, {})[group] = figures
    return found


@contextmanager
def _endpoint(url: str, checkpoint: Path, dtype: str, console: Console) -> Iterator[str]:
    """Where to ask: `url`, or a server of our own until the block ends."""
    if url:
        yield url
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end what was started, too
    console.print("starting shoal serve ...")
    with serving(checkpoint, (*SERVE_FLAGS, "--dtype", dtype)) as server, server.awake():
        yield server.url


if __name__ == "__main__":
    typer.run(main)
