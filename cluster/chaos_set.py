"""The set of faults that `shoal chaos` tries, with a progress bar.

Those for a cluster without replicas first, then those for one with; a cluster is started for each kind. Knows
nothing of what a fault does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.chaos import KILLS, Load, Outcome, Served, Shape, make_load, running, try_fault, try_kills
from cluster.faults import BY_NAME, Fault
from cluster.history import StreamEvent, to_lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to try. faults: names, none for all. kills: in a row, after the rest."""

    model: str | None
    faults: Sequence[str]
    kills: int
    streams: int
    seed: int
    port: int
    journal: Path | None

    def __post_init__(self) -> None:
        unknown = [name for name in self.faults if name not in BY_NAME]
        if unknown:
            raise ValueError(f"fault is {unknown[0]!r}: not known; known: {', '.join(BY_NAME)}")
        if self.model is not None and (refused := [n for n in self.faults if BY_NAME[n].needs_copy]):
            raise ValueError(f"fault is {refused[0]!r}: it needs a copy of the checkpoint; leave MODEL out")

    @property
    def chosen(self) -> list[Fault]:
        if self.faults:
            return [BY_NAME[name] for name in self.faults]
        has_copy, is_root = self.model is None, os.geteuid() == 0
        return [f for f in BY_NAME.values() if has_copy >= f.needs_copy and is_root >= f.needs_root]

    @property
    def heading(self) -> str:
        cores = len(psutil.Process().cpu_affinity() or ())
        what = "the embedded model" if self.model is None else self.model
        return f"{what}, {self.streams} concurrent streams, {cores} cores, seed {self.seed}"


def run_set(plan: Plan, console: Console) -> list[Outcome]:
    """Every outcome, in the order of the plan. Raises ValueError or LaunchError if no cluster comes up."""
    outcomes: list[Outcome] = []
    bars = Progress(
        TextColumn("{task.description:<46}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    with bars:
        task = bars.add_task("starting", total=len(plan.chosen) + plan.kills)
        say = functools.partial(bars.update, task)
        load: Load | None = None
        for is_replicated in (False, True):
            faults = [fault for fault in plan.chosen if fault.is_replicated == is_replicated]
            kills = plan.kills if is_replicated else 0
            if not faults and not kills:
                continue
            say(description=f"starting a cluster with{'' if is_replicated else 'out'} replicas")
            with running(Shape(model=plan.model, is_replicated=is_replicated, port=plan.port)) as served:
                if load is None:
                    say(description="asking for the fault-free answers")
                    load = make_load(served, plan.streams, plan.seed)
                for fault in faults:
                    say(description=fault.about)
                    outcomes.append(try_fault(served, fault, load, _keeper(plan, fault.name)))
                    say(advance=1)
                if kills:
                    outcomes.append(_kill_in_a_row(plan, served, load, say))
    return outcomes


def _kill_in_a_row(plan: Plan, served: Served, load: Load, say: Callable[..., None]) -> Outcome:
    def on_kill(number: int, victim: str) -> None:
        say(description=f"kill {number} of {plan.kills}: {victim}", advance=1)

    return try_kills(served, load, plan.kills, plan.seed, on_kill, _keeper(plan, KILLS))


def _keeper(plan: Plan, name: str) -> Callable[[Sequence[StreamEvent]], None]:
    """Writes a history where the plan wants it."""

    def keep(history: Sequence[StreamEvent]) -> None:
        if plan.journal is not None:
            plan.journal.mkdir(parents=True, exist_ok=True)
            (plan.journal / f"{name}.jsonl").write_text("\n".join(to_lines(history)) + "\n")

    return keep
