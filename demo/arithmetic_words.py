"""How sums are asked for.

Patterns for demo/phrases.py: many verbs for each operation, and what is held out are new combinations of
them. Knows nothing of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

# {e}: the expression.
BARE = (
    "[What is|How much is|What's|So what is] {e}?",
    "What does {e} [give|make|equal|come to]?",
    "[|Please |Now |Can you ][calculate|compute|work out|evaluate|solve|find] {e}.",
    "[Tell me|Give me|Find|I need] the [value|result] of {e}.",
    "[What is|How much is] the [value|result] of {e}?",
    "[Tell me|Find] what {e} [is|gives|makes].",
    "{e} = ?",
    "{e}",
)
_BUYS = "[buys|finds|gets|wins|makes|collects|is given|earns]"
_LOSES = "[loses|sells|gives away|eats|throws away|breaks|uses|drops]"
_LOST = "[lost|sold|gave away|ate|threw away|broke|used|dropped|took]"
_IN_ALL = "[in all|together|altogether|in total]"
# {a}, {b}, {c}: the numbers in the order of the expression. {name}, {other}: people. {things}: what they
# count.
WORDED: Mapping[str, tuple[str, ...]] = {
    "+": (
        f"{{name}} has {{a}} {{things}} and {_BUYS} {{b}} more. "
        f"How many {{things}} does {{name}} have [now|in all]?",
        f"{{name}} has {{a}} {{things}} and {{other}} has {{b}}. How many {{things}} do they have {_IN_ALL}?",
        f"There are {{a}} {{things}} in one [box|bag|room] and {{b}} in another. "
        f"How many {{things}} are there {_IN_ALL}?",
        "{name} [sold|made|found|bought|saw|used] {a} {things} [last week|yesterday|on Monday] and {b} "
        f"[this week|today|on Friday]. How many {{things}} is that {_IN_ALL}?",
        "[There were|A box held] {a} {things} and {name} [put in|added|brought] {b} more. "
        "How many {things} are there [now|in all]?",
        "[Add|Please add|Now add] {a} and {b}.",
        "[What is|Find|Tell me] the [sum|total] of {a} and {b}[|, please].",
    ),
    "-": (
        f"{{name}} has {{a}} {{things}} and {_LOSES} {{b}}. "
        "How many {things} [does {name} have now|does {name} have left|are left|remain]?",
        f"{{name}} had {{a}} {{things}} and {_LOST} {{b}}. "
        "How many {things} [does {name} have now|does {name} have left|are left|remain]?",
        f"There were {{a}} {{things}} in a [box|bag|room]. {{name}} {_LOST} {{b}}. "
        "How many {things} [are left|remain]?",
        "{name} has {a} {things} and [gives|sells|sends] {b} to {other}. "
        "How many {things} [does {name} have left|are left]?",
        "{name} has {a} {things} and {other} has {b}. "
        "How many more {things} does {name} have[| than {other}]?",
        "[Subtract|Please subtract|Take|Please take] {b} from {a}.",
        "[What is|Find|Tell me] the difference between {a} and {b}[|, please].",
    ),
    "*": (
        "[One|Each|Every] box holds {a} {things}. How many {things} do {b} boxes hold[| in all| together]?",
        "[One|Each|Every] bag holds {a} {things}. How many {things} do {b} bags hold[| in all| together]?",
        "[Multiply|Please multiply|Now multiply] {a} by {b}.",
        "[What is|Find|Tell me] the product of {a} and {b}[|, please].",
        "{name} [buys|finds|gets|sells|makes] {b} [boxes|bags|packs] of {a} {things}. "
        "How many {things} is that[| in all| together]?",
        "[Every|Each] day {name} [makes|buys|finds|sells|uses] {a} {things}. "
        "How many {things} is that in {b} days?",
        "[Every|Each] week {name} [makes|buys|finds|sells|uses] {a} {things}. "
        "How many {things} is that in {b} weeks?",
        "[Each|Every one] of {b} [rooms|boxes|bags] has {a} {things}. "
        "How many {things} are there[| in all| together]?",
        "There are {b} [rooms|boxes|bags] with {a} {things} [each|in each]. "
        "How many {things} are there[| in all| together]?",
    ),
    "++": (
        "{name} has {a} {things}, {other} has {b} and I have {c}. "
        f"How many {{things}} do we have {_IN_ALL}?",
        "[What is|Find|Tell me] the [sum|total] of {a}, {b} and {c}[|, please].",
        "{name} [made|sold|found|bought|used] {a} {things} on Monday, {b} on Tuesday and {c} on Friday. "
        f"How many {{things}} is that {_IN_ALL}?",
        "Three [boxes|bags|rooms] [hold|have] {a}, {b} and {c} {things}. "
        f"How many {{things}} are there {_IN_ALL}?",
    ),
    "+*": (
        "{name} has {a} {things} and [buys|finds|gets|wins|makes] {b} [boxes|bags|packs] of {c}. "
        "How many {things} does {name} have [now|in all]?",
        "There are {a} {things} on the table and {b} [boxes|bags|packs] with {c} [each|in each]. "
        f"How many {{things}} are there {_IN_ALL}?",
        "{name} [buys|finds|gets|wins|makes] {a} {things} and then {b} [boxes|bags|packs] of {c}. "
        f"How many {{things}} is that {_IN_ALL}?",
    ),
    "-*": (
        "{name} has {a} {things} and [gives|sells|sends] {c} to each of {b} [friends|people]. "
        "How many {things} [are left|remain]?",
        f"There were {{a}} {{things}}. {{name}} {_LOST} {{b}} [boxes|bags|packs] of {{c}}. "
        "How many {things} [are left|remain]?",
        f"{{name}} had {{a}} {{things}} and {_LOST} {{b}} [boxes|bags|packs] of {{c}}. "
        "How many {things} [are left|remain]?",
    ),
}
SPOKEN: Mapping[str, tuple[str, ...]] = {"+": ("plus",), "-": ("minus",), "*": ("times", "multiplied by")}
