"""A run as tables and as JSON.

Goals are stated with met or not met, never asserted. Knows nothing of how a run is made.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from bench.baseline import NAME as BASELINE
from bench.baseline import Probe, Variant
from bench.timing import Figures, Round, common_prefix, figures

LOCAL = "shoal local"
LOCAL_TWO = "shoal local x2"
LOCAL_THREADS = "shoal local, 2 threads"
TCP = "shoal tcp"
WIDTH = 110
UNTUNED = "untuned"
Key = tuple[str, int]  # system, concurrency


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """At least `factor` times the tokens/s of transformers."""

    system: str
    many: bool  # at the highest concurrency, else at 1
    factor: float


GOALS = (
    Goal(system=LOCAL, many=False, factor=3.0),
    Goal(system=TCP, many=False, factor=1.5),
    Goal(system=LOCAL, many=True, factor=4.0),
    Goal(system=TCP, many=True, factor=3.0),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Answers of two systems to the same prompts. tokens: the mean share before the first that differs."""

    equal: int
    answers: int
    tokens: float


@dataclass(kw_only=True, slots=True)
class Run:
    """Everything measured. rounds: per system and concurrency, in order."""

    rounds: dict[Key, list[Round]] = field(default_factory=dict)
    probes: list[Probe] = field(default_factory=list)
    best: dict[int, Variant] = field(default_factory=dict)

    def add(self, system: str, concurrency: int, one: Round) -> None:
        self.rounds.setdefault((system, concurrency), []).append(one)

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(system for system, _ in self.rounds))

    @property
    def concurrencies(self) -> list[int]:
        return sorted({concurrency for _, concurrency in self.rounds})

    def figures(self, system: str, concurrency: int) -> Figures | None:
        """None where it was not measured."""
        rounds = self.rounds.get((system, concurrency))
        return figures(rounds) if rounds else None

    def ratio(self, system: str, concurrency: int) -> float | None:
        """Median tokens/s over the baseline's; None without either."""
        ours, theirs = self.figures(system, concurrency), self.figures(BASELINE, concurrency)
        return ours.tokens_per_s / theirs.tokens_per_s if ours and theirs else None

    def agreement(self, ours: str, theirs: str) -> Agreement:
        """Over all rounds and concurrencies that both have answered."""
        equal, shares = 0, list[float]()
        for our, their in self._pairs(ours, theirs):
            equal += our == their
            shares.append(common_prefix(our, their) / len(our))
        mean = sum(shares) / len(shares) if shares else math.nan
        return Agreement(equal=equal, answers=len(shares), tokens=mean)

    def _pairs(self, ours: str, theirs: str) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        for concurrency in self.concurrencies:
            both = self.rounds.get((ours, concurrency), []), self.rounds.get((theirs, concurrency), [])
            for our, their in zip(*both, strict=False):
                for one, other in zip(our.answers, their.answers, strict=True):
                    yield one.token_ids, other.token_ids


def stdout_console() -> Console:
    """As wide as the terminal; wide enough for the tables where there is none."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def render(run: Run, workload: Mapping[str, Any], machine: Mapping[str, Any]) -> RenderableType:
    """What a person reads."""
    about = (
        f"{machine['cpu']}, {machine['cores']} cores; prompts of {workload['prompt_tokens']} tokens, "
        f"{workload['new_tokens']} new; median of {workload['rounds']} rounds (least-most)"
    )
    tables = [_table(run, concurrency) for concurrency in run.concurrencies]
    notes = [*goal_lines(run), *agreement_lines(run)]
    return Group(about, *tables, *([_probe_table(run.probes)] if run.probes else []), *notes)


def goal_lines(run: Run) -> list[str]:
    """One per goal whose ratio was measured."""
    if len(run.concurrencies) < 2:
        return []
    lines = []
    for goal in GOALS:
        concurrency = run.concurrencies[-1] if goal.many else run.concurrencies[0]
        ratio = run.ratio(goal.system, concurrency)
        if ratio is not None:
            verdict = "met" if ratio >= goal.factor else "not met"
            lines.append(
                f"goal: {goal.system} at {concurrency} >= {goal.factor:g} x {BASELINE}: {ratio:.2f} x, "
                f"{verdict}{'' if concurrency in run.best else f' ({UNTUNED})'}"
            )
    return lines


def agreement_lines(run: Run) -> list[str]:
    """The first Shoal system against every other."""
    ours, *others = [system for system in run.systems if system != BASELINE] or [""]
    lines = []
    for other in [*others, *([BASELINE] if BASELINE in run.systems and ours else [])]:
        found = run.agreement(ours, other)
        lines.append(
            f"greedy tokens: {ours} = {other} in {found.equal} of {found.answers} answers, "
            f"{100 * found.tokens:.1f} % of the tokens before the first difference"
        )
    return lines


def as_json(run: Run, workload: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    """What a program reads; numbers are not rounded away, but not 17 digits long either."""
    measured = [
        {
            "system": system,
            "concurrency": concurrency,
            "ratio": run.ratio(system, concurrency),
            **asdict(figures(rounds)),
        }
        for (system, concurrency), rounds in run.rounds.items()
    ]
    shoals = [system for system in run.systems if system != BASELINE]
    whole = {
        "workload": dict(workload),
        "machine": dict(machine),
        "measured": measured,
        "baseline": {str(batch): asdict(variant) for batch, variant in run.best.items()},
        "probes": [asdict(one) for one in run.probes],
        "goals": goal_lines(run),
        "agreement": {
            other: asdict(run.agreement(shoals[0], other)) for other in run.systems if other != shoals[0]
        }
        if shoals
        else {},
    }
    rounded: dict[str, Any] = _rounded(whole)
    return rounded


def _table(run: Run, concurrency: int) -> Table:
    title = "one request at a time" if concurrency == 1 else f"{concurrency} requests at once"
    table = Table("system", title=title, title_justify="left", caption_justify="left")
    for heading in ("tokens/s", "", "x", "TTFT p50", "p99 ms", "TPOT p50", "p99 ms", "others"):
        table.add_column(heading, justify="right")
    for system in run.systems:
        got = run.figures(system, concurrency)
        if got is None:
            continue
        ratio = run.ratio(system, concurrency)
        table.add_row(
            system,
            f"[bold]{got.tokens_per_s:.1f}[/]",
            f"({got.least:.1f}-{got.most:.1f})",
            "" if ratio is None else f"{ratio:.2f}",
            *(f"{ms:.0f}" for ms in got.ttft_ms),
            *(f"{ms:.1f}" for ms in got.tpot_ms),
            f"{max(got.foreign_cores):.2f}",
        )
    table.caption = "others: cores busy with other processes' work, in the worst round"
    if run.figures(BASELINE, concurrency) is not None:
        chosen = run.best.get(concurrency)
        table.caption = f"{BASELINE}: {chosen or f'{Variant()} ({UNTUNED})'}. {table.caption}"
    return table


def _probe_table(probes: Sequence[Probe]) -> Table:
    """The best probe of each variant."""
    table = Table("transformers variants tried", title_justify="left")
    for heading in ("batch", "TTFT ms", "TPOT ms", "tokens/s"):
        table.add_column(heading, justify="right")
    fastest: dict[tuple[int, Variant], Probe] = {}
    for one in sorted(probes, key=lambda one: one.tokens_per_s):
        fastest[one.batch, one.variant] = one
    for one in sorted(fastest.values(), key=lambda one: (one.batch, -one.tokens_per_s)):
        table.add_row(
            str(one.variant),
            str(one.batch),
            f"{one.ttft_ms:.0f}",
            f"{one.tpot_ms:.1f}",
            f"{one.tokens_per_s:.1f}",
        )
    return table


def _rounded(value: Any) -> Any:
    """Floats to five digits; NaN, which JSON has not, to None."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return value
