"""Questions about Shoal and the model itself.

A table of topics: ways to ask, and the one answer to learn. Knows nothing beyond README.md and the shape of
the demo model, and says so when asked for more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from demo import words
from demo.about_shoal import SHOAL_TOPICS
from demo.about_topics import EXPLAIN, MODEL_TOPICS, UNKNOWN
from demo.phrases import expanded, say
from demo.sample import Message, Sample, Split, Task

UNKNOWN_SHARE = 0.15
GREETED_SHARE = 0.1  # of the questions follow a greeting and its answer
QUESTION_SHARE = 0.3  # of those about a thing that has questions of its own
ROUGH_SHARE = 0.3  # of the questions come as people type: without capitals and without the question mark


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """One thing to ask about. questions: patterns of ways to ask. things: to be explained."""

    questions: tuple[str, ...]
    things: tuple[str, ...]
    answer: str
    keys: tuple[str, ...]


@cache
def topics() -> tuple[Topic, ...]:
    """Those of the table, in its order; what nothing here answers is not among them."""
    return tuple(_topic(block) for table in (MODEL_TOPICS, SHOAL_TOPICS) for block in table.split("\n\n"))


@cache
def unknown() -> Topic:
    """What nothing here answers."""
    return _topic(UNKNOWN)


def draw(rng: Random, split: Split) -> Sample:
    """A question of the table, or one that nothing here answers."""
    greeting, *others = topics()
    is_unknown = rng.random() < UNKNOWN_SHARE
    topic = unknown() if is_unknown else rng.choice((greeting, *others))
    question = _unknown(rng, split) if is_unknown else _question(rng, split, topic)
    if rng.random() < ROUGH_SHARE:
        question = question.lower().removesuffix("?").removesuffix(".")
    is_greeted = topic is not greeting and rng.random() < GREETED_SHARE
    before = _greeting(rng, split, greeting) if is_greeted else ()
    return Sample(
        task="about",
        messages=(*before, {"role": "user", "content": question}),
        answer={"role": "assistant", "content": topic.answer},
        facts={"topic": "unknown" if is_unknown else topic.keys[0]},
        expected={"answer": topic.answer, "keys": topic.keys},
    )


def is_right(sample: Sample, text: str) -> bool:
    """Whether `text` is the answer, but for capitals and spaces, or holds every key of it."""
    said, wanted = _normal(text), _normal(sample.expected["answer"])
    return said == wanted or all(key in said for key in sample.expected["keys"])


def _topic(block: str) -> Topic:
    """A topic as demo/about_topics.py writes it."""
    lines = [(line[0], line[2:]) for line in block.replace("\n  ", " ").splitlines()]
    asked = [text for mark, text in lines if mark == "?"]
    return Topic(
        questions=tuple(way for way in asked if not way.startswith("<")),
        things=tuple(way.strip("<>") for way in asked if way.startswith("<")),
        answer=next(text for mark, text in lines if mark == "="),
        keys=tuple(next(text for mark, text in lines if mark == "*").split(" | ")),
    )


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _question(rng: Random, split: Split, topic: Topic) -> str:
    """A thing to explain stands beside its few questions, which are then for training alone."""
    if not topic.things:
        return say(rng, topic.questions, split)
    if split == "train" and topic.questions and rng.random() < QUESTION_SHARE:
        return rng.choice([way for pattern in topic.questions for way in expanded(pattern)])
    return say(rng, EXPLAIN, split).format(thing=rng.choice(topic.things))


def _unknown(rng: Random, split: Split) -> str:
    name, other = words.name(rng, split), words.name(rng, split)
    way = say(rng, unknown().questions, split)
    return way.format(name=name, other=other, word=words.word(rng, split))


def _greeting(rng: Random, split: Split, topic: Topic) -> tuple[Message, Message]:
    return (
        {"role": "user", "content": _question(rng, split, topic)},
        {"role": "assistant", "content": topic.answer},
    )


TASK = Task(name="about", draw=draw, is_right=is_right)
