"""docs/model-report.md, written from the results.

`python -m demo.report`, or `make report`. Every section says what was measured, what was aimed at and what is
bad; one whose file is missing says that. Knows nothing of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from demo.readers import ResultError
from demo.report_answers import about, arithmetic, evaluation, needles, sql, tools
from demo.report_experts import experts, routing
from demo.report_page import Inputs, Section
from demo.report_training import model, precision, prediction, sparse_attention, training

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
CHECKPOINT = Path(__file__).with_name("checkpoint")
FIGURES = "figures"
SECTIONS: tuple[tuple[str, Callable[[Section, Inputs], None]], ...] = (
    ("The model", model),
    ("Training", training),
    ("The evaluation", evaluation),
    ("SQL by joins", sql),
    ("Arithmetic with and without thinking", arithmetic),
    ("Tools", tools),
    ("Needles by depth and context length", needles),
    ("Questions about Shoal", about),
    ("DSA against dense attention", sparse_attention),
    ("Expert utilisation", experts),
    ("Routing: stability and specialisation", routing),
    ("FP8 against BF16", precision),
    ("MTP acceptance", prediction),
)
HEAD = """\
# The embedded model, measured

Written by `make report` from `demo/results/`; do not edit. Answers are to held-out samples, asked greedily
over the OpenAI API of `shoal serve`; intervals are Wilson's, 95 %. What is bad is printed as such.
Curves of many points are drawn as the means of at most 200 windows.
"""


def main(
    results: Annotated[Path, typer.Option(help="The folder of the results.")] = RESULTS,
    checkpoint: Annotated[Path, typer.Option(help="The checkpoint that they are about.")] = CHECKPOINT,
    out: Annotated[Path, typer.Option(help="The page; its plots go beside it.")] = ROOT
    / "docs"
    / "model-report.md",
) -> None:
    """Write the model report and its plots."""
    console = Console(stderr=True, highlight=False)
    try:
        sections = write_report(Inputs(results=results, checkpoint=checkpoint), out)
    except ResultError as error:
        console.print(f"[bold red]error[/] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    goals = [goal for section in sections for goal in section.goals]
    reached = sum(goal.is_reached for goal in goals)
    console.print(f"{out.name}: {len(sections)} sections, {reached} of {len(goals)} goals reached")


def write_report(inputs: Inputs, page: Path) -> list[Section]:
    """Write `page` and its figures; raises ResultError where a file is there but cannot be used."""
    figures = page.parent / FIGURES
    sections = [_section(title, fill, inputs, figures) for title, fill in SECTIONS]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(sections), encoding="utf-8")
    return sections


def render(sections: Iterable[Section]) -> str:
    """The whole page."""
    parts = list(sections)
    lines = [HEAD, *_summary(parts)]
    for section in parts:
        lines += [f"## {section.title}", "", *section.lines]
    return "\n".join(lines).rstrip() + "\n"


def _section(title: str, fill: Callable[[Section, Inputs], None], inputs: Inputs, figures: Path) -> Section:
    section = Section(title=title, figures=figures, link=FIGURES)
    section.unless_missing(lambda: fill(section, inputs))
    return section


def _summary(sections: Iterable[Section]) -> list[str]:
    top = Section(title="Goals", figures=Path())
    goals = [goal for section in sections for goal in section.goals]
    if goals:
        top.table(
            ("goal", "", "measured", ""),
            [(goal.what, goal.wanted, goal.got, goal.verdict) for goal in goals],
        )
    else:
        top.say("No goal has been measured yet.")
    return top.lines


if __name__ == "__main__":
    typer.run(main)
