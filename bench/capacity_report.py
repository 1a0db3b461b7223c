"""The open loop as tables, JSON, a picture, and a section of docs/performance.md.

The section stands between two marks and is written anew. Knows nothing of how a run is made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from bench.features import Comparison
from bench.machine import describe
from bench.mix import NEW_TOKENS, PROMPT_TOKENS, SHARED_TOKENS, SHARING
from bench.outcome import KEPT, Limits, Trial
from bench.plots import lines

RESULTS = Path(__file__).with_name("results") / "capacity.json"
DOCS = Path(__file__).parents[1] / "docs"
PICTURE, PAGE = DOCS / "figures" / "capacity.png", DOCS / "performance.md"
BEGIN, END = "<!-- bench.capacity: written by the bench -->", "<!-- bench.capacity: end -->"
SYSTEM_COLUMNS = (
    "system",
    "served/s",
    "TTFT ms p50 / p90",
    "TPOT ms p50 / p90",
    "goodput/s",
    "peak GB",
)
FEATURE_COLUMNS = ("feature", "model", "times as quick", "rounds", "TTFT ms on / off", "TPOT ms on / off")


@dataclass(kw_only=True, slots=True)
class System:
    """One system's trials, in order."""

    name: str
    trials: list[Trial] = field(default_factory=list)
    peak_bytes: int = 0

    def best(self, limits: Limits) -> Trial | None:
        """At the highest rate that was served."""
        return max(
            (one for one in self.trials if one.is_served(limits)), key=lambda one: one.rate, default=None
        )

    def goodput(self, limits: Limits) -> float:
        """Most requests/s within the limits, at whichever rate."""
        return max(one.rate * one.kept(limits) for one in self.trials)


@dataclass(kw_only=True, slots=True)
class Report:
    """missing: who is not here, and why."""

    command: str
    load_before: float
    limits: Limits
    missing: dict[str, str]
    systems: list[System] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)


def show(report: Report) -> RenderableType:
    """What a person reads at the end."""
    parts: list[RenderableType] = []
    for title, columns, rows in _tables(report):
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        parts.append(table)
    return Group(*parts, *_notes(report))


def as_json(report: Report) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": report.command,
        "machine": describe(),
        "load_before": round(report.load_before, 1),
        "limits": {**asdict(report.limits), "kept": KEPT},
        "mix": {
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": NEW_TOKENS,
            "shared_tokens": SHARED_TOKENS,
            "sharing": SHARING,
        },
        "systems": [
            {
                "system": system.name,
                "served": best.rate if (best := system.best(report.limits)) else None,
                "goodput": round(system.goodput(report.limits), 3),
                "peak_bytes": system.peak_bytes,
                "trials": [trial.figures(report.limits) for trial in system.trials],
            }
            for system in report.systems
        ],
        "missing": report.missing,
        "features": [one.figures() for one in report.comparisons],
    }


def write(report: Report, results: Path = RESULTS, picture: Path = PICTURE, page: Path = PAGE) -> None:
    """The JSON, the picture, and the page's section."""
    results.write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    if report.systems:
        curves = {}
        for system in report.systems:
            trials = sorted(system.trials, key=lambda one: one.rate)
            good = [one.rate * one.kept(report.limits) for one in trials]
            curves[system.name] = ([one.rate for one in trials], good)
        axes = ("requests/s that arrive", "requests/s within the limits")
        lines(picture, "What is served in time", curves, axes=axes, log="x")
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{section(report)}{END}{after}", encoding="utf-8")


def section(report: Report) -> str:
    """Markdown."""
    machine = describe()
    text = [
        f"`{report.command}` on {machine['cores']} cores of {machine['cpu']}, load {report.load_before:.1f} "
        f"before it, {datetime.now(UTC):%Y-%m-%d}; `bench/results/{RESULTS.name}`. Prompts of "
        f"{', '.join(map(str, PROMPT_TOKENS))} tokens, in {SHARING:.0%} after one of two beginnings of "
        f"{SHARED_TOKENS}; {', '.join(map(str, NEW_TOKENS))} new ones."
    ]
    for title, columns, rows in _tables(report):
        table = [columns, tuple("---" for _ in columns), *rows]
        text += [f"{title}:", "\n".join(f"| {' | '.join(row)} |" for row in table)]
    if report.systems:
        text.append(f"![What is served in time](figures/{PICTURE.name})")
    text += [f"- {line}" for line in _notes(report)]
    return "\n\n".join(text) + "\n"


def _tables(report: Report) -> list[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
    limits = report.limits
    tables: list[tuple[str, Sequence[str], list[tuple[str, ...]]]] = []
    if report.systems:
        title = (
            f"Highest rate at which {KEPT:.0%} of the requests have their first token within "
            f"{limits.ttft_s:g} s and the others within {limits.tpot_s * 1e3:g} ms each in the mean"
        )
        tables.append((title, SYSTEM_COLUMNS, [_system_row(one, limits) for one in report.systems]))
    if report.comparisons:
        title = "Each feature on and off, a burst of the same requests to an engine"
        tables.append((title, FEATURE_COLUMNS, [_feature_row(one) for one in report.comparisons]))
    return tables


def _system_row(system: System, limits: Limits) -> tuple[str, ...]:
    best = system.best(limits)
    got = best.figures(limits) if best else {}
    return (
        system.name,
        f"{best.rate:.2f}" if best else f"below {min(one.rate for one in system.trials):.2f}",
        _pair(got.get("ttft_ms")),
        _pair(got.get("tpot_ms")),
        f"{system.goodput(limits):.2f}",
        f"{system.peak_bytes / 1e9:.2f}" if system.peak_bytes else "?",
    )


def _feature_row(comparison: Comparison) -> tuple[str, ...]:
    got = comparison.figures()
    return (
        got["feature"],
        got["model"],
        f"{got['ratio']:.2f}",
        ", ".join(f"{ratio:.2f}" for ratio in got["ratios"]),
        _pair([got[side]["ttft_ms"] for side in ("on", "off")]),
        f"{got['on']['tpot_ms']:.1f} / {got['off']['tpot_ms']:.1f}",
    )


def _notes(report: Report) -> list[str]:
    return [f"{name}: {reason}." for name, reason in report.missing.items()]


def _pair(values: Sequence[float] | None) -> str:
    return " / ".join(f"{value:.0f}" for value in values) if values else "-"
