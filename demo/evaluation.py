"""Right and wrong answers, counted.

One `Outcome` per judged answer; scores group them by their facts. Knows nothing of endpoints
(demo/client.py) and of how answers are judged (demo/sample.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from demo.readers import Fields, ResultError, read_json
from demo.sample import Fact

Z_95 = 1.959963984540054  # of the normal distribution, two-sided
CALL, ANSWER, ROUND_TRIP = "call", "answer", "round trip"
PARTS = (CALL, ANSWER, ROUND_TRIP)
SHOWN_CHARS = 160
CUT = " ... "


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One answer, judged.

    facts: what it is grouped by, such as {"joins": 2}; of a tool sample {"part": one of PARTS}.
    question, text, wanted: what was asked, what came and what training would show, all clipped.
    """

    task: str
    is_right: bool
    thinking: bool = False
    facts: Mapping[str, Fact] = field(default_factory=dict)
    question: str = ""
    text: str = ""
    wanted: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    finish_reason: str = "stop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Everything that one run of demo/evaluate.py asked, and what was asked of whom."""

    command: str
    seed: int
    samples: int
    model: str
    seconds: float
    outcomes: Sequence[Outcome]

    def of(self, task: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.task == task]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How many of how many are right."""

    right: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.of:
            raise ValueError(f"{self.right} of {self.of} cannot be right: must be between 0 and all")

    @property
    def share(self) -> float:
        """NaN where nothing was asked."""
        return self.right / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share; everything is possible where nothing was asked."""
        if not self.of:
            return 0.0, 1.0
        z2 = Z_95 * Z_95 / self.of
        middle = self.share + z2 / 2
        reach = Z_95 * math.sqrt(self.share * (1 - self.share) / self.of + z2 / (4 * self.of))
        low, high = (middle - reach) / (1 + z2), (middle + reach) / (1 + z2)
        # At none and all right the ends are 0 and 1 exactly; rounding would leave them just inside.
        return (max(0.0, low) if self.right else 0.0), (min(1.0, high) if self.right < self.of else 1.0)

    def __str__(self) -> str:
        if not self.of:
            return "not asked"
        low, high = self.interval
        return f"{100 * self.share:.1f} % ({self.right} of {self.of}; {100 * low:.0f}-{100 * high:.0f})"


def score(outcomes: Iterable[Outcome]) -> Score:
    """All of them as one."""
    right = [outcome.is_right for outcome in outcomes]
    return Score(right=sum(right), of=len(right))


def scores_by(outcomes: Iterable[Outcome], key: Callable[[Outcome], Fact | None]) -> dict[Fact, Score]:
    """A score per value of `key`, in the order of the values; those for which it is None are left out."""
    groups: dict[Fact, list[Outcome]] = {}
    for outcome in outcomes:
        value = key(outcome)
        if value is not None:
            groups.setdefault(value, []).append(outcome)
    ordered = sorted(groups, key=lambda value: (isinstance(value, str), value))
    return {value: score(groups[value]) for value in ordered}


def by_fact(outcomes: Iterable[Outcome], name: str) -> dict[Fact, Score]:
    """A score per value of one fact."""
    return scores_by(outcomes, lambda outcome: outcome.facts.get(name))


def clipped(text: str, limit: int = SHOWN_CHARS) -> str:
    """`text` on one line, its middle cut where it is longer than `limit`."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    half = (limit - len(CUT)) // 2
    return line[:half] + CUT + line[-half:]


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """One outcome per line, so that two runs can be compared with diff."""
    fields = asdict(evaluation)
    outcomes = fields.pop("outcomes")
    head = json.dumps(fields, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(outcome, ensure_ascii=False) for outcome in outcomes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "outcomes": [\n{lines}\n]\n}}\n', encoding="utf-8")


def read_evaluation(path: Path) -> Evaluation:
    """Raises ResultError, which names the file and the key."""
    fields = read_json(path)
    return Evaluation(
        command=fields.text("command"),
        seed=fields.count("seed"),
        samples=fields.count("samples"),
        model=fields.text("model"),
        seconds=fields.number("seconds"),
        outcomes=tuple(_outcome(one) for one in fields.items("outcomes")),
    )


def _outcome(fields: Fields) -> Outcome:
    return Outcome(
        task=fields.text("task"),
        is_right=fields.flag("is_right"),
        thinking=fields.flag("thinking"),
        facts={name: _fact(fields, name, value) for name, value in fields.under("facts").values.items()},
        question=fields.text("question"),
        text=fields.text("text"),
        wanted=fields.text("wanted"),
        prompt_tokens=fields.count("prompt_tokens"),
        tokens=fields.count("tokens"),
        finish_reason=fields.text("finish_reason"),
    )


def _fact(fields: Fields, name: str, value: object) -> Fact:
    if not isinstance(value, int | float | str):
        raise ResultError(f"{fields.where}: facts.{name} is {value!r}: must be a number or text")
    return value
