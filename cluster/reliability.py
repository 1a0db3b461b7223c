"""Outcomes of faults as a table: on a terminal, as JSON, as Markdown.

Knows nothing of how they came about.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from cluster.chaos import Outcome

COLUMNS = (
    "fault",
    "detected after",
    "recovered after",
    "longest token gap",
    "slowest request / p99 before",
    "pages handed over / tokens computed again",
    "requests",
    "failed",
    "differing tokens",
    "left behind",
)
MEASURED, BETWEEN_HOSTS = "measured", "between hosts"  # places in a file


def table(outcomes: Sequence[Outcome]) -> Table:
    """For a terminal; what is not as promised is red."""
    shown = Table(*COLUMNS, title="shoal chaos")
    for outcome in outcomes:
        shown.add_row(*_cells(outcome), style=None if outcome.is_as_promised else "red")
    return shown


def as_json(outcomes: Sequence[Outcome]) -> str:
    return json.dumps([asdict(outcome) for outcome in outcomes], indent=2)


def write_report(file: Path, outcomes: Sequence[Outcome], heading: str, place: str = MEASURED) -> None:
    """Put the outcomes where the last ones are."""
    before, after = places_of(file, place)
    begin, end = _marks(place)
    measured = f"{begin}\n{heading}\n\n{as_markdown(outcomes)}\n{end}"
    file.write_text(before + measured + after, encoding="utf-8")


def places_of(file: Path, place: str = MEASURED) -> tuple[str, str]:
    """What comes before the outcomes and what after; raises ValueError if the file has no place for them."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    begin, end = _marks(place)
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{file} has no {begin} ... {end}: nowhere to write the measured figures")
    return before, after


def _marks(place: str) -> tuple[str, str]:
    return f"<!-- {place}: begin -->", f"<!-- {place}: end -->"


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_cells(outcome) for outcome in outcomes)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    cut = f", {outcome.cut} cut" if outcome.cut else ""
    return (
        outcome.about,
        _seconds(outcome.detected_s),
        _seconds(outcome.recovered_s),
        _seconds(outcome.longest_gap_s),
        "-" if outcome.slowdown is None else f"{outcome.slowdown:.2f}",
        f"{outcome.handed_pages} / {outcome.again_tokens}",
        f"{outcome.requests} ({outcome.tokens} tokens)",
        f"{outcome.failed}{cut}",
        str(outcome.differing),
        "; ".join(outcome.left_behind) or "nothing",
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
