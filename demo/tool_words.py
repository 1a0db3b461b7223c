"""Names, values and wordings of toy tools.

Most names are made up, so that a call can only copy them from the schema. Knows nothing of how tools, calls
and results are written.
"""

from __future__ import annotations

from random import Random

from demo import words
from demo.lexicon import ADJECTIVES, LABELS, MEASURES, THINGS, VERBS
from demo.sample import Split

MADE_UP_SHARE = 0.6  # of the parameters and of the keys of results
MADE_UP_TASK_SHARE = 0.4  # of the verbs and of the nouns of tasks
TWO_WORDS_SHARE = 0.1  # of the parameters and keys, such as "drenio_size"
MUTE_SHARE = 0.3  # tools whose name says nothing: only the description tells what they do
WHOLE_SHARE = 0.3  # of the numbers that might have a fraction
NAMING = ("{verb}_{noun}", "{verb}_{noun}", "{verb}_{noun}", "{noun}_{verb}", "{noun}")
KINDS = ("string", "string", "integer", "integer", "number", "boolean")  # as often as they stand here
# How a question states a parameter.
SETTINGS = (
    *("{name} {value}", "{name} {value}", "{name} {value}", "{name} = {value}", "{name}: {value}"),
    *("{name} set to {value}", "{value} as {name}", "{value} for {name}", "the {name} {value}"),
)
REQUESTS = (
    "[|Please |Now |Can you |Could you |I want you to ]{task} with {values}.",
    "[|Please |Now |Can you |Could you |I want you to ]{task}, using {values}.",
    "[|Please |Now |Can you ]{task}[:|,] {values}.",
    "[I want|I need|I would like] to {task} [with|using] {values}.",
    "[I want|I need|I would like] to {task}. [Use|Take|Please use|Please take] {values}.",
    "[With|Using] {values}[|, please|, now|, can you] {task}.",
    "[Use|Take|Now use|Now take|Please use|Please take] {values} and {task}.",
)
DESCRIPTIONS = (
    "{task}.",
    "[Use|Call] [this|it] to {task}.",
    "[|This is ]a [tool|function|way] to {task}.",
    "[This|It|This tool|This function] [can|will] {task}.",
    "[This|It|This tool|This function] lets you {task}.",
)


def verb(rng: Random, split: Split) -> str:
    """The verb of a task."""
    return words.word(rng, split) if rng.random() < MADE_UP_TASK_SHARE else words.english(rng, VERBS, split)


def noun(rng: Random, split: Split) -> str:
    """The noun of a task."""
    return words.word(rng, split) if rng.random() < MADE_UP_TASK_SHARE else words.english(rng, THINGS, split)


def tool_name(rng: Random, split: Split, verb: str, noun: str) -> str:
    """Of a tool for that task, or a name that says nothing."""
    if rng.random() < MUTE_SHARE:
        return words.word(rng, split)
    return rng.choice(NAMING).format(verb=verb, noun=noun)


def terms(rng: Random, split: Split, count: int) -> list[str]:
    """Different names of parameters or of a result's keys."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[_term(rng, split)] = None
    return list(found)


def value(rng: Random, split: Split, kind: str) -> str | int | float | bool:
    """Of a type of JSON schema."""
    if kind == "string":
        return _text(rng, split)
    if kind == "integer":
        return words.number(rng, split, 1, 999)
    if kind == "number":
        whole = words.number(rng, split, 1, 99)
        return whole if rng.random() < WHOLE_SHARE else whole + rng.randint(1, 9) / 10
    return rng.random() < 0.5


def result_value(rng: Random, split: Split) -> int | str:
    """What a toy tool finds."""
    if rng.random() < 0.5:
        return words.number(rng, split, 10, 9_999)
    return words.word(rng, split) if rng.random() < 0.7 else words.english(rng, ADJECTIVES, split)


def _term(rng: Random, split: Split) -> str:
    term = _word(rng, split)
    return f"{_word(rng, split)}_{term}" if rng.random() < TWO_WORDS_SHARE else term


def _word(rng: Random, split: Split) -> str:
    if rng.random() < MADE_UP_SHARE:
        return words.word(rng, split)
    return words.english(rng, rng.choice((MEASURES, LABELS, ADJECTIVES)), split)


def _text(rng: Random, split: Split) -> str:
    """Some look like numbers: that they are text stands in the schema alone."""
    share = rng.random()
    if share < 0.5:
        return words.name(rng, split)
    if share < 0.65:
        return words.word(rng, split)
    return words.english(rng, ADJECTIVES, split) if share < 0.8 else str(words.number(rng, split, 1, 999))
