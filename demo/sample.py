"""One question, the answer to learn, and what a checker needs.

Every task (demo/tasks.py lists them) draws these. Knows nothing of tokens (demo/corpus.py) and of how an
answer is judged (each task's `is_right`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

Split = Literal["train", "held_out"]
Message = Mapping[str, Any]
Fact = int | float | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """messages, tools: a chat request in OpenAI's shapes. answer: the assistant message to learn, whole.

    facts: what reports group by, such as {"joins": 2}. expected: what `is_right` compares with; never shown
    to the model.
    """

    task: str
    messages: Sequence[Message]
    answer: Message
    thinking: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    facts: Mapping[str, Fact] = field(default_factory=dict)
    expected: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A source of samples and their judge.

    draw: a fresh sample; the same state of the generator gives the same sample. Templates, names, values and
    lengths of "held_out" never occur in "train". is_right: whether the text that a model answered (after its
    reasoning) is a right answer, by execution or by parsing, not by likeness.
    """

    name: str
    draw: Callable[[Random, Split], Sample]
    is_right: Callable[[Sample, str], bool]
