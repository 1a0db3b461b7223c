"""Sections about answers over the endpoint.

From demo/results/evaluation.json; a group for which nothing was asked says so. Knows nothing of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from demo.evaluation import CALL, PARTS, ROUND_TRIP, Outcome, Score, by_fact, score
from demo.figures import heat_map, shares
from demo.report_page import Inputs, Section
from demo.sample import Fact

NEEDLE_FACTOR = 8  # the goal's context length, in index_topk


def evaluation(section: Section, inputs: Inputs) -> None:
    made = inputs.evaluation()
    section.say(
        f"`{made.command}`: {len(made.outcomes):,} answers of the model {made.model}, seed {made.seed}, "
        f"in {made.seconds:.0f} s."
    )
    cut = sum(one.finish_reason == "length" for one in made.outcomes)
    if cut:
        section.bad(f"{cut} answers were cut off by the limit of tokens.")


def sql(section: Section, inputs: Inputs) -> None:
    outcomes = _asked(section, inputs, "sql")
    if not outcomes:
        return
    scores = _named(by_fact(outcomes, "joins"))
    section.say(
        "A query is right if it returns the rows of the reference query on generated tables (SQLite)."
    )
    section.scores("joins", scores)
    path = section.plot("sql", "SQL by number of joins")
    shares(path, "SQL: execution accuracy", {"sql": scores}, x_label="joins", goal=90)
    section.goal_share("SQL execution accuracy", 0.9, score(outcomes))
    many = score(one for one in outcomes if _number(one, "joins") >= 2)
    section.goal_share("SQL execution accuracy with 2 and more joins", 0.8, many)
    section.wrong(outcomes)


def arithmetic(section: Section, inputs: Inputs) -> None:
    outcomes = _asked(section, inputs, "arithmetic")
    if not outcomes:
        return
    thinking = [one for one in outcomes if one.thinking]
    plain = [one for one in outcomes if not one.thinking]
    series = {
        name: _named(by_fact(those, "digits"))
        for name, those in (("with thinking", thinking), ("without thinking", plain))
    }
    for name, scores in series.items():
        section.scores(
            f"digits, {name}", {**scores, "all": score(thinking if "without" not in name else plain)}
        )
    path = section.plot("arithmetic", "Arithmetic by digits")
    shares(path, "Arithmetic: exact answers", series, x_label="digits", goal=90)
    section.goal_share("arithmetic with thinking", 0.9, score(thinking))
    section.wrong(thinking)


def tools(section: Section, inputs: Inputs) -> None:
    outcomes = _asked(section, inputs, "tool")
    if not outcomes:
        return
    found = by_fact(outcomes, "part")
    scores = {part: found.get(part, Score(right=0, of=0)) for part in PARTS}
    section.say(
        f"{CALL}: the function and its arguments. answer: the sentence after the result of the right call. "
        f"{ROUND_TRIP}: the model's own call, its result, then the answer."
    )
    section.scores("part", scores)
    path = section.plot("tools", "Tool calls")
    shares(path, "Tools: right calls and answers", {"tool": scores}, x_label="", goal=95)
    section.goal_share("tool round trip", 0.95, scores[ROUND_TRIP])
    section.wrong(outcomes)


def needles(section: Section, inputs: Inputs) -> None:
    outcomes = _asked(section, inputs, "needle")
    if not outcomes:
        return
    lengths = list(by_fact(outcomes, "tokens"))
    depths = list(by_fact(outcomes, "depth"))
    cells = {
        (depth, length): score(
            one for one in outcomes if (one.facts.get("depth"), one.facts.get("tokens")) == (depth, length)
        )
        for depth in depths
        for length in lengths
    }
    section.say(
        "Right of asked. Depth 0 is the beginning of the context, 1 its end; lengths are as asked for."
    )
    section.table(
        ("depth", *(f"{length} tokens" for length in lengths)),
        [
            (str(depth), *(f"{cells[depth, length].right}/{cells[depth, length].of}" for length in lengths))
            for depth in depths
        ]
        + [("prompt tokens, median", *(f"{_prompt_tokens(outcomes, length):.0f}" for length in lengths))],
    )
    path = section.plot("needles", "Needles by depth and context length")
    heat_map(
        path,
        "Needles: right answers, %",
        [[_percent(cells[depth, length]) for length in lengths] for depth in depths],
        rows=[str(depth) for depth in depths],
        columns=[str(length) for length in lengths],
        axes=("context, tokens", "depth"),
        limits=(0, 100),
    )
    _needle_goal(section, inputs, outcomes)
    section.wrong(outcomes)


def about(section: Section, inputs: Inputs) -> None:
    outcomes = _asked(section, inputs, "about")
    if not outcomes:
        return
    section.scores("questions", {"about Shoal": score(outcomes)})
    section.wrong(outcomes)


def _asked(section: Section, inputs: Inputs, task: str) -> list[Outcome]:
    outcomes = inputs.evaluation().of(task)
    if not outcomes:
        section.say(f"Not measured: the evaluation holds no answers to the task {task}.")
    return outcomes


def _needle_goal(section: Section, inputs: Inputs, outcomes: list[Outcome]) -> None:
    topk = section.unless_missing(inputs.index_topk)
    if topk is None:
        return
    far = score(one for one in outcomes if _number(one, "tokens") == NEEDLE_FACTOR * topk)
    section.goal_share(f"needle at {NEEDLE_FACTOR} x index_topk ({NEEDLE_FACTOR * topk} tokens)", 0.95, far)


def _named(scores: Mapping[int | float | str, Score]) -> dict[str, Score]:
    return {str(value): one for value, one in scores.items()}


def _number(outcome: Outcome, fact: str) -> float:
    value = outcome.facts.get(fact)
    return float(value) if isinstance(value, int | float) else math.nan


def _prompt_tokens(outcomes: list[Outcome], length: Fact) -> float:
    return median(one.prompt_tokens for one in outcomes if one.facts.get("tokens") == length)


def _percent(one: Score) -> float:
    return 100 * one.share
