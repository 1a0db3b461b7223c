"""How questions about tables are worded.

Patterns for demo/phrases.py, by the kind of query. Knows nothing of schemas and of SQL beyond its operators.
"""

from __future__ import annotations

from collections.abc import Mapping

# {t} the root table; {out}, {group}, {m} columns; {the_out} with its article; {where} " whose ..." or
# nothing, {only} " among those whose ..."; {measure} "the mean m of the t rows{where}"; {bound} "more than
# 3 rows".
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "list": (
        "[List|Show|Give|Find] {the_out} [of|for] [every|each] {t}{where}.",
        "[List|Show|Give|Find] {the_out} of all {t} rows{where}.",
        "What is {the_out} of [each|every] {t}{where}?",
        "For [every|each] {t}{where}, [give|show|list|find] {the_out}.",
        "Find all {t} rows{where} and [list|show|give] {the_out} of each.",
    ),
    "count": (
        "How many {t} rows are there{where}?",
        "Count [the|all] {t} rows{where}.",
        "What is the number of [|all ]{t} rows{where}?",
        "[Give|Find|Show] the number of [|all ]{t} rows{where}.",
        "[Find|Show] how many {t} rows there are{where}.",
        "For [all|the] {t} rows{where}, [give|find|show] the [count|number].",
    ),
    "aggregate": (
        "What is the {agg} {m} of [all|the] {t} rows{where}?",
        "[Find|Give|Compute|Show] the {agg} {m} [of|over|for] [all|the] {t} rows{where}.",
        "For [all|the] {t} rows{where}, what is the {agg} {m}?",
        "For [all|the] {t} rows{where}, [find|give|compute|show] the {agg} {m}.",
    ),
    "group": (
        "For [each|every] value of {group}, [give|show|compute] {measure}.",
        "What is {measure} for [each|every] {group}?",
        "[Show|Give|Find|List|Compute] {measure} [per|by] {group}.",
        "[Show|Give|List|Find] [every|each] {group} with {measure}.",
    ),
    "having": (
        "Among [the|all] {t} rows{where}, which {group} has {bound}?",
        "Which {group} has {bound} among [the|all] {t} rows{where}?",
        "Group the {t} rows{where} by {group} and [keep|show|list] those with {bound}.",
        "[List|Show|Find] [every|each] {group} [with|that has] {bound} among [the|all] {t} rows{where}.",
        "[For|Among] [the|all] {t} rows{where}, "
        "[show|list|find] [each|every] {group} [that has|with] {bound}.",
    ),
    "top": (
        "Among the {t} rows{where}, "
        "[show|give|list|find] {the_out} of the {k} [with|that have] the {most} {m}.",
        "What is {the_out} of the {k} {t} rows with the {most} {m}{only}?",
        "Sort the {t} rows{where} by {m}, {most} first, and [give|show|list] {the_out} of {k}.",
        "[Give|Show|List|Find] {the_out} of the {k} {t} rows{where} that have the {most} {m}.",
        "[Give|Show|List|Find] {the_out} of the {k} {t} rows with the {most} {m}{only}.",
        "For the {k} {t} rows with the {most} {m}{only}, [list|show|give|find] {the_out}.",
        "[Show|Give|List|Find] {the_out} of {k} {t} rows{where}, {most} {m} first.",
    ),
    "distinct": (
        "[List|Show|Give|Find] the [different|distinct] {out} values of [the|all] {t} rows{where}.",
        "[Which|What] [different|distinct] {out} values do the {t} rows have{where}?",
        "[Which|What] [different|distinct] {out} values are there among the {t} rows{where}?",
        "[Show|Give|List|Find] [each|every] [different|distinct] {out} [of|among] the {t} rows{where}.",
        "Give every {out} of the {t} rows{where} once, without repeats.",
        "For [the|all] {t} rows{where}, [list|show|give] the [different|distinct] {out} values.",
    ),
}
AGGREGATES: Mapping[str, tuple[str, ...]] = {
    "sum": ("total", "summed"),
    "avg": ("average", "mean"),
    "min": ("lowest", "smallest", "minimum"),
    "max": ("highest", "largest", "maximum"),
}
ORDERS: Mapping[str, tuple[str, ...]] = {"desc": ("highest", "largest"), "asc": ("lowest", "smallest")}
# How a question says a comparison, which holds {} for the value.
COMPARISONS: Mapping[str, tuple[str, ...]] = {
    "= {}": ("is {}", "equals {}"),
    "> {}": ("is above {}", "is greater than {}", "is more than {}"),
    "< {}": ("is below {}", "is less than {}", "is under {}"),
    ">= {}": ("is at least {}",),
    "<= {}": ("is at most {}",),
    "between {} and {}": ("is between {} and {}", "is from {} to {}"),
    "like '{}%'": ("starts with '{}'", "begins with '{}'"),
}
NUMBER_COMPARISONS = ("= {}", "> {}", "< {}", ">= {}", "<= {}", "between {} and {}")
BOUNDS: Mapping[str, tuple[str, ...]] = {
    "count(*) > {}": ("more than {} rows", "a count above {}"),
    "count(*) < {}": ("less than {} rows", "a count below {}"),
    "avg({}) > {}": ("an average {} above {}", "a mean {} greater than {}"),
    "avg({}) < {}": ("an average {} below {}", "a mean {} less than {}"),
}
