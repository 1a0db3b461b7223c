"""Task: a question about unseen tables, answered in SQL.

The lesson is to copy names never seen before and to find the joins in the schema: a question names the tables
at the two ends of a path, seldom those between. Knows nothing of how schemas grow (demo/sql_schema.py) and of
rows (demo/sql_judge.py).

One canonical query per question, which can be written from left to right without planning ahead: from the
farthest table that the question names back along the keys to the root (what one row is about), each time to
the one table that has the key, `from t join u on t_id = t.id`; from there to the other table named, if any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from demo.phrases import say
from demo.sample import Sample, Split, Task
from demo.sql_judge import same_answers
from demo.sql_schema import Draft, Literals
from demo.sql_words import AGGREGATES, BOUNDS, COMPARISONS, NUMBER_COMPARISONS, ORDERS, TEMPLATES
from demo.words import name, number, word

SYSTEM = "Answer with one SQL query."
# Percent of samples with 0, 1, 2 and 3 joins; training has more of what is harder.
JOIN_WEIGHTS: Mapping[Split, tuple[int, ...]] = {"train": (15, 27, 32, 26), "held_out": (25, 35, 25, 15)}
NUMBERS = (2, 999)
COUNTS = (2, 14)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Where a query's columns live, as numbers of the draft's tables.

    lead: of the column that is listed or grouped by (0 where there is none). conditions: one table each.
    """

    lead: int
    conditions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A query less its joins and conditions, and what the templates of its kind call its parts."""

    select: str
    tail: str = ""
    rows: int = 24  # of the root, for a result that tells right from wrong
    parts: Mapping[str, str] = field(default_factory=dict)


def draw(rng: Random, split: Split) -> Sample:
    """One question about a fresh database, and its query."""
    joins = rng.choices(range(4), JOIN_WEIGHTS[split])[0]
    kind = rng.choice(tuple(TEMPLATES))
    draft = Draft(rng=rng, split=split)
    plan = _draw_plan(draft, kind, draft.add_paths(joins))
    body = _BODIES[kind](draft, plan.lead)
    where, asked = _draw_conditions(draft, plan.conditions)
    source = _source(draft, (plan.lead, *plan.conditions))
    query = f"select {body.select} from {source}{where}{body.tail};"
    parts = {
        "t": draft.names[0],
        "where": asked,
        "only": f" among those{asked}" if asked else "",
        **body.parts,
    }
    if "measure" in parts:
        parts["measure"] += asked
    question = say(rng, TEMPLATES[kind], split).format(**parts)
    draft.add_distractors(tables=rng.randint(1, 2) if joins < 2 else 1, columns=rng.randint(1, 2))
    return _sample(draft, question, query, body, {"joins": joins, "kind": kind})


def is_right(sample: Sample, text: str) -> bool:
    """Whether `text`, run as a query, gives what the reference gives; wrong for whatever is not a query."""
    return same_answers(sample.expected, text)


TASK = Task(name="sql", draw=draw, is_right=is_right)


def _sample(draft: Draft, question: str, query: str, body: Body, facts: Mapping[str, int | str]) -> Sample:
    tables = draft.finished()
    schema = "\n".join(table.as_line() for table in tables)
    return Sample(
        task="sql",
        messages=(
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{schema}\n{question}"},
        ),
        answer={"role": "assistant", "content": query},
        facts=facts,
        expected={
            "query": query,
            "ordered": facts["kind"] == "top",
            "seed": draft.rng.getrandbits(32),
            "root": draft.names[0],
            "rows": body.rows,
            "tables": [table.as_json() for table in tables],
        },
    )


def _draw_plan(draft: Draft, kind: str, ends: list[int]) -> Plan:
    """Columns at every far end, so that all the joins are needed; the other columns nearer to the root."""
    rng = draft.rng
    has_lead = kind not in ("count", "aggregate")
    if len(ends) == 1:
        nearer = draft.path_to(ends[0])[:-1]
        ends = [ends[0], rng.choice(nearer) if nearer and rng.random() < 0.25 else 0]
    needed = set(ends) - {0}
    places = rng.sample(ends, 2)
    lead, conditions = (places[0], places[1:]) if has_lead else (0, places)
    # A condition that brings no join and that the kind can do without is dropped more often than not.
    spare = len(conditions) - 1 if kind in ("list", "count") and not needed else len(conditions)
    for place in [place for place in conditions if place not in needed][:spare]:
        if rng.random() < 0.6:
            conditions.remove(place)
    if kind == "list" and len(conditions) == 1 and rng.random() < 0.25:
        conditions.append(0)
    return Plan(lead=lead, conditions=tuple(conditions))


def _source(draft: Draft, ends: Iterable[int]) -> str:
    """The tables after `from`. Of ends equally far the first one is the start."""
    paths = [draft.path_to(end) for end in ends]
    far = max(paths, key=len, default=[])
    steps = list(pairwise(reversed([0, *far])))  # from a table to the one that refers to it
    names = draft.names
    source = names[far[-1] if far else 0]
    source += "".join(f" join {names[to]} on {names[at]}_id = {names[at]}.id" for at, to in steps)
    others = dict.fromkeys(table for path in paths for table in path if table not in far)
    return source + "".join(
        f" join {names[table]} on {names[table]}_id = {names[table]}.id" for table in others
    )


# How a question refers to a column: bare if it is the root's, else with its table.


def _bare(draft: Draft, table: int, column: str) -> str:
    return f"{draft.names[table]} {column}" if table else column


def _with_article(draft: Draft, table: int, column: str) -> str:
    if table and draft.rng.random() < 0.5:
        return f"the {column} of the {draft.names[table]}"
    return f"the {_bare(draft, table, column)}"


# Conditions.


def _draw_conditions(draft: Draft, tables: tuple[int, ...]) -> tuple[str, str]:
    """The where clause and its words in the question, each empty or with a space before it."""
    if not tables:
        return "", ""
    rng = draft.rng
    is_whose = rng.random() < 0.5
    both = f" {rng.choice(('and', 'and', 'or'))} "
    drawn = [_draw_condition(draft, table, is_whose=is_whose) for table in tables]
    clause, asked = (both.join(said) for said in zip(*drawn, strict=True))
    return f" where {clause}", f" {'whose' if is_whose else 'where'} {asked}"


def _draw_condition(draft: Draft, table: int, *, is_whose: bool) -> tuple[str, str]:
    rng = draft.rng
    is_text = rng.random() < 0.45
    operator, literals = _draw_text_test(draft) if is_text else _draw_number_test(draft)
    column = draft.add_column(table, "text" if is_text else "number", literals)
    shown = [f"'{literal}'" if is_text and "like" not in operator else literal for literal in literals]
    said = rng.choice(COMPARISONS[operator]).format(*shown)
    subject = _bare(draft, table, column) if is_whose else _with_article(draft, table, column)
    return f"{column} {operator.format(*shown)}", f"{subject} {said}"


def _draw_number_test(draft: Draft) -> tuple[str, Literals]:
    operator = draft.rng.choice(NUMBER_COMPARISONS)
    literals = {number(draft.rng, draft.split, *NUMBERS)}
    while len(literals) < operator.count("{}"):
        literals.add(number(draft.rng, draft.split, *NUMBERS))
    return operator, tuple(sorted(literals))


def _draw_text_test(draft: Draft) -> tuple[str, Literals]:
    if draft.rng.random() < 0.25:
        return "like '{}%'", (word(draft.rng, draft.split, syllables=(1, 1)).capitalize(),)
    return "= {}", (name(draft.rng, draft.split),)


# One function a kind; `lead` is the table of the column that is listed or grouped by.


def _list(draft: Draft, lead: int) -> Body:
    out = draft.add_column(lead, "text" if draft.rng.random() < 0.5 else "number")
    return Body(select=out, parts={"the_out": _with_article(draft, lead, out)})


def _distinct(draft: Draft, lead: int) -> Body:
    out = draft.add_column(lead, "text")
    return Body(select=f"distinct {out}", parts={"out": _bare(draft, lead, out)})


def _top(draft: Draft, lead: int) -> Body:
    listed = _list(draft, lead)
    order = draft.rng.choice(tuple(ORDERS))
    by = draft.add_column(0, "number")
    count = number(draft.rng, draft.split, *COUNTS)
    most = draft.rng.choice(ORDERS[order])
    return Body(
        select=listed.select,
        tail=f" order by {by} {order} limit {count}",
        rows=24 + 4 * count,
        parts={**listed.parts, "k": str(count), "most": most, "m": by},
    )


def _count(draft: Draft, lead: int) -> Body:
    return Body(select="count(*)")


def _aggregate(draft: Draft, lead: int) -> Body:
    function = draft.rng.choice(tuple(AGGREGATES))
    measured = draft.add_column(0, "number")
    said = draft.rng.choice(AGGREGATES[function])
    return Body(select=f"{function}({measured})", parts={"agg": said, "m": measured})


def _group(draft: Draft, lead: int) -> Body:
    by = draft.add_column(lead, "text")
    measure, said = "count(*)", "the number of"
    if draft.rng.random() < 0.5:
        body = _aggregate(draft, lead)
        measure, said = body.select, "the {agg} {m} of the".format(**body.parts)
    return Body(
        select=f"{by}, {measure}",
        tail=f" group by {by}",
        rows=40,
        parts={"group": _bare(draft, lead, by), "measure": f"{said} {draft.names[0]} rows"},
    )


def _having(draft: Draft, lead: int) -> Body:
    by = draft.add_column(lead, "text")
    bound = draft.rng.choice(tuple(BOUNDS))
    shown: tuple[int | str, ...]
    if bound.startswith("count"):
        count = number(draft.rng, draft.split, *COUNTS)
        shown, rows = (count,), 24 + 16 * count
    else:
        limit = number(draft.rng, draft.split, *NUMBERS)
        shown, rows = (draft.add_column(0, "number", (limit,)), limit), 40
    return Body(
        select=by,
        tail=f" group by {by} having {bound.format(*shown)}",
        rows=rows,
        parts={"group": _bare(draft, lead, by), "bound": draft.rng.choice(BOUNDS[bound]).format(*shown)},
    )


_BODIES: Mapping[str, Callable[[Draft, int], Body]] = {
    "list": _list,
    "count": _count,
    "aggregate": _aggregate,
    "group": _group,
    "having": _having,
    "top": _top,
    "distinct": _distinct,
}
