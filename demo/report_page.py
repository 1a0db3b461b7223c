"""A section of the model report: words, tables, plots and goals.

And where sections read from. Knows nothing of what is measured (demo/report_answers.py,
demo/report_training.py, demo/report_experts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from demo.evaluation import Evaluation, Outcome, Score, read_evaluation
from demo.readers import Fields, ResultMissing, read_json
from demo.runs import CheckpointRecord, Curves, Run, read_curves, read_record, read_run

EXAMPLES = 3  # of wrong answers, per section
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The files of results. All readers raise ResultError, ResultMissing where there is no file."""

    results: Path
    checkpoint: Path

    def run(self, name: str) -> Run:
        return read_run(self.results, name)

    def curves(self, name: str) -> Curves:
        return read_curves(self.results, name)

    def evaluation(self) -> Evaluation:
        return read_evaluation(self.results / "evaluation.json")

    def record(self) -> CheckpointRecord:
        return read_record(self.checkpoint)

    def config(self) -> Fields:
        return read_json(self.checkpoint / "config.json")

    def index_topk(self) -> int:
        return self.config().count("index_topk")


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What was aimed at and what came out."""

    what: str
    wanted: str
    got: str
    is_reached: bool

    @property
    def verdict(self) -> str:
        return "reached" if self.is_reached else "**not reached**"


@dataclass(kw_only=True, slots=True)
class Section:
    """Grows from top to bottom. figures: the folder of the plots; `link` is how the page names it."""

    title: str
    figures: Path
    link: str = "figures"
    lines: list[str] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A paragraph."""
        self.lines += [text, ""]

    def bad(self, text: str) -> None:
        """A paragraph that nobody may overlook."""
        self.say(f"**Bad:** {text}")

    def table(self, heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.lines.append(_row(heading))
        self.lines.append("|" + "---|" * len(heading))
        self.lines += [_row(cells) for cells in rows]
        self.lines.append("")

    def scores(self, heading: str, scores: Mapping[str, Score]) -> None:
        """A table of scores with their intervals."""
        self.table((heading, "right (95 % interval)"), [(label, str(one)) for label, one in scores.items()])

    def goal(self, what: str, *, wanted: str, got: str, is_reached: bool) -> None:
        """State it here and in the table at the top of the page."""
        goal = Goal(what=what, wanted=wanted, got=got, is_reached=is_reached)
        self.goals.append(goal)
        self.say(f"Goal: {what} {wanted}. Measured: {got}, {goal.verdict}.")

    def goal_share(self, what: str, least: float, got: Score) -> None:
        """Reached if the share, not its interval, is at least `least`; never where nothing was asked."""
        self.goal(
            what,
            wanted=f">= {100 * least:.0f} %",
            got=str(got),
            is_reached=bool(got.of) and got.share >= least,
        )

    def plot(self, name: str, caption: str) -> Path:
        """Where to write the plot that stands here; its section must write it."""
        self.say(f"![{caption}]({self.link}/{name}.png)")
        return self.figures / f"{name}.png"

    def wrong(self, outcomes: Iterable[Outcome]) -> None:
        """Some answers that were wrong, as they came."""
        wrong = [outcome for outcome in outcomes if not outcome.is_right]
        if not wrong:
            return
        self.bad(f"{len(wrong)} wrong answers. The first {min(EXAMPLES, len(wrong))}:")
        for one in wrong[:EXAMPLES]:
            cut = " (cut off by the limit of tokens)" if one.finish_reason == "length" else ""
            self.lines += [
                f"    asked:  {one.question}",
                f"    wanted: {one.wanted}",
                f"    came:   {one.text}{cut}",
            ]
            self.lines.append("")

    def unless_missing(self, read: Callable[[], T]) -> T | None:
        """What `read` returns; where its file is missing the page says so, and the answer is None."""
        try:
            return read()
        except ResultMissing as error:
            self.say(f"Not measured: {error}.")
            return None


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
