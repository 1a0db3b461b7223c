"""What is served in time: Shoal beside transformers.

    python -m bench.capacity [--quick] [--write]

or `make bench`. An open loop: for every system the highest rate of Poisson arrivals at which nine of ten
requests have their first token and those after it in time. Rates are searched in rounds in which systems take
turns, so that a noisy minute hits all of them. Then each feature on and off. Knows nothing of how a system is
asked.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.capacity_report import Report, System, show, write
from bench.contenders import NAMES, Contender, missing, start
from bench.features import FEATURES, compare
from bench.machine import command, cpu_times, foreign_cores
from bench.mix import Request, make_mix
from bench.outcome import Limits, Trial
from bench.pipe import PipeError
from bench.report import stdout_console
from bench.search import Search
from bench.server import ServerError
from bench.step import preset_directory

WARM_REQUESTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """seconds: of arrivals in a trial. patience_s: after the last of them. rounds: of every feature."""

    trials: int = 5
    seconds: float = 15.0
    patience_s: float = 10.0
    first_rate: float = 1.0
    rounds: int = 3
    requests: int = 16
    seed: int = 0


FULL = Plan()
QUICK = Plan(trials=2, seconds=4.0, patience_s=4.0, rounds=1, requests=4)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="About two minutes: two rates, one round.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(NAMES)}. Repeatable.")] = None,
    features: Annotated[bool, typer.Option(help="Each feature on and off.")] = True,
    systems: Annotated[bool, typer.Option(help="The search for rates.")] = True,
    ttft_s: Annotated[float, typer.Option(help="Longest wait for a first token.")] = 5.0,
    tpot_ms: Annotated[float, typer.Option(help="Longest mean time of a token after it.")] = 250.0,
    keep: Annotated[
        bool, typer.Option("--write", help="JSON, picture and the section of docs/performance.md.")
    ] = False,
) -> None:
    """Measure, print, and with --write keep."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end what was started, too
    plan, limits = QUICK if quick else FULL, Limits(ttft_s=ttft_s, tpot_s=tpot_ms / 1e3)
    names = [name for name in only or NAMES if name not in missing()] if systems else []
    if unknown := set(names) - set(NAMES):
        raise typer.BadParameter(f"{', '.join(unknown)}: expected {', '.join(NAMES)}", param_hint="--only")
    report = Report(
        command=command("bench.capacity"),
        load_before=psutil.getloadavg()[0],
        limits=limits,
        missing=missing(names),
    )
    checkpoint = preset_directory()
    wanted = FEATURES if features else {}
    with _bar(len(names) * (1 + plan.trials) + len(wanted) * 2 * plan.rounds) as note:
        try:
            report.systems += measure(names, checkpoint, plan, limits, note)
        except (ServerError, PipeError) as error:
            raise typer.BadParameter(str(error)) from None
        for name in wanted:
            report.comparisons.append(
                compare(
                    name, checkpoint, rounds=plan.rounds, requests=plan.requests, seed=plan.seed, note=note
                )
            )
    stdout_console().print(show(report))
    if keep:
        write(report)


def measure(
    names: Sequence[str], checkpoint: Path, plan: Plan, limits: Limits, note: Callable[[str], None]
) -> list[System]:
    """Start the named systems, warm them, and let each try its next rate in turn."""
    threads = psutil.cpu_count() or 1
    systems = [System(name=name) for name in names]
    searches = {name: Search(plan.first_rate) for name in names}
    with ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name in names:
            note(f"starting {name}")
            contenders[name] = start(stack, name, checkpoint, threads)
            with contenders[name].awake():
                contenders[name].ask(_mix(plan, seed=-1, rate=plan.first_rate)[:WARM_REQUESTS], 60.0)
        for number in range(plan.trials):
            for system in systems:
                search = searches[system.name]
                note(f"{number + 1}/{plan.trials} {system.name}: {search.rate:.2f}/s")
                trial = _try(contenders[system.name], _mix(plan, plan.seed, search.rate), search.rate, plan)
                search.note(is_served=trial.is_served(limits))
                system.trials.append(trial)
        for system in systems:
            system.peak_bytes = contenders[system.name].peak_bytes
    return systems


def _try(contender: Contender, requests: list[Request], rate: float, plan: Plan) -> Trial:
    with contender.awake():
        before = cpu_times()
        outcomes = contender.ask(requests, plan.patience_s)
        return Trial(rate=rate, outcomes=tuple(outcomes), foreign_cores=foreign_cores(before, cpu_times()))


def _mix(plan: Plan, seed: int, rate: float) -> list[Request]:
    """At least a few, however seldom they come."""
    return make_mix(seed, rate=rate, seconds=max(plan.seconds, WARM_REQUESTS / rate * 2))


class Noting:
    """Moves the bar on."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._task = progress, progress.add_task("", total=total)
        self._is_first = True

    def __call__(self, what: str) -> None:
        self._progress.update(self._task, description=what, advance=0 if self._is_first else 1)
        self._is_first = False


@contextmanager
def _bar(total: int) -> Iterator[Noting]:
    with Progress(
        TextColumn("{task.description:<42}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as progress:
        yield Noting(progress, total)


if __name__ == "__main__":
    typer.run(main)
