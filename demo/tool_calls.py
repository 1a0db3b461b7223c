"""Tool calls to write, and results to report.

Tools, questions and results are made up; a call is judged by parsing its DSML, a report by the values in it.
Knows nothing of how a prompt lays out tools (ingress/encoding.py).
"""

# The special token of a call is spelled with bars that are not ASCII.
# ruff: noqa: RUF001

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NoReturn

from demo import words
from demo.sample import Message, Sample, Split, Task

CALL_SHARE = 0.6  # of the samples end in a call, the rest in a report of its result
CALL_ID = "call_0"
MOST_TOOLS, MOST_PARAMETERS = 3, 3
MADE_UP_NAME_SHARE = 0.3  # tools whose name says nothing: only the description tells what they do
MADE_UP_NOUN_SHARE = 0.4
TEXT_RESULT_SHARE = 0.3
SHUFFLED_SHARE = 0.3
TEXT_KEY = "answer"

# The last HELD_OUT_... of each list are never trained on.
HELD_OUT_VERBS = 3
VERBS = (
    *("get", "find", "book", "send", "count", "check", "order", "open", "close", "start", "stop", "show"),
    *("rent", "plan", "move", "sell", "fix", "print", "paint", "clean"),
)
HELD_OUT_NOUNS = 4
NOUNS = (
    *(
        "weather",
        "hotel",
        "flight",
        "message",
        "ticket",
        "table",
        "door",
        "lamp",
        "parcel",
        "price",
        "report",
    ),
    *("train", "room", "song", "letter", "garden", "bill", "visit", "photo", "boat", "robot", "clock"),
)
HELD_OUT_PARAMETERS = 1
PARAMETERS = {
    "string": ("city", "name", "place", "title", "person", "color", "street"),
    "integer": ("count", "days", "level", "age", "seats", "hours", "pages"),
    "number": ("size", "weight", "speed", "width", "depth", "height"),
    "boolean": ("urgent", "public", "loud", "exact", "quick"),
}
KINDS = ("string", "string", "integer", "integer", "number", "boolean")  # as often as they stand here
HELD_OUT_REQUESTS = 2
REQUESTS = (
    "{task} with {values}.",
    "Please {task} with {values}.",
    "{task}: {values}.",
    "Can you {task} with {values}?",
    "I want you to {task}. Use {values}.",
    "{task}, {values}.",
    "Could you {task} with {values}?",
    "I need to {task} with {values}.",
)
HELD_OUT_KEYS = 2
KEYS = ("total", "status", "id", "time", "score", "cost", "code", "place", "state", "rank", "owner", "amount")

NAME = r"[^\"\n]+"
VALUE = r"(?:(?!｜DSML｜).)*?"
PARAMETER = f'<｜DSML｜parameter name="({NAME})" string="(true|false)">({VALUE})</｜DSML｜parameter>'
INVOKE = f'<｜DSML｜invoke name="({NAME})">\n((?:{PARAMETER}(?:\n{PARAMETER})*)?)\n</｜DSML｜invoke>'
ONE_PARAMETER, ONE_INVOKE = re.compile(PARAMETER, re.DOTALL), re.compile(INVOKE, re.DOTALL)
CALLS = re.compile(
    f"<｜DSML｜function_calls>\n({INVOKE}(?:\n{INVOKE})*)\n</｜DSML｜function_calls>",
    re.DOTALL,
)
STATED = re.compile(r"\b(?:the|The) (\w+) is ([\w.-]*\w)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call as a model wrote it."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tool:
    """parameters: name -> type of JSON schema. task: what it does, as its description says."""

    name: str
    task: str
    parameters: Mapping[str, str]

    @property
    def schema(self) -> Mapping[str, Any]:
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        function = {
            "name": self.name,
            "description": f"{self.task.capitalize()}.",
            "parameters": {"type": "object", "properties": properties},
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """A question that `call` answers. keys: of the result that the tool will give; none for plain text."""

    question: str
    tools: Sequence[_Tool]
    call: ToolCall
    keys: Sequence[str]
    split: Split


def draw(rng: Random, split: Split) -> Sample:
    """A call, or the report of a call's result."""
    request = _request(rng, split)
    return _call_sample(request) if rng.random() < CALL_SHARE else _answer_sample(request, request.call)


def round_trip(rng: Random, split: Split) -> tuple[Sample, Callable[[ToolCall], Sample]]:
    """A call to ask for, and what makes the next sample of the call that came: its result is to be reported.

    The call need not be the expected one: the toy tools answer any.
    """
    request = _request(rng, split)
    return _call_sample(request), lambda call: _answer_sample(request, call)


def parse_calls(text: str) -> tuple[ToolCall, ...] | None:
    """The calls that `text` consists of; None where it is anything else or any part of it is damaged."""
    block = CALLS.fullmatch(text.strip())
    if block is None:
        return None
    calls = [_parsed(name, body) for name, body, *_ in ONE_INVOKE.findall(block[1])]
    found = tuple(call for call in calls if call is not None)
    return found if len(found) == len(calls) else None


def is_right(sample: Sample, text: str) -> bool:
    """Whether `text` is just the expected call, or states just the values of the result."""
    if sample.facts["stage"] == "call":
        wanted = ToolCall(name=sample.expected["name"], arguments=sample.expected["arguments"])
        calls = parse_calls(text)
        return calls is not None and len(calls) == 1 and _is_same(calls[0], wanted)
    return STATED.findall(text) == [(key, _spoken(value)) for key, value in sample.expected["values"].items()]


def _is_same(call: ToolCall, wanted: ToolCall) -> bool:
    """Types count: 1, 1.0 and true are three values."""
    typed = [{key: (type(value), value) for key, value in one.arguments.items()} for one in (call, wanted)]
    return call.name == wanted.name and typed[0] == typed[1]


def _parsed(name: str, body: str) -> ToolCall | None:
    arguments: dict[str, Any] = {}
    for key, is_string, written in ONE_PARAMETER.findall(body):
        try:
            value = written if is_string == "true" else json.loads(written, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
        # Strings are never written as JSON, and no parameter twice.
        if key in arguments or (is_string == "false" and isinstance(value, str)):
            return None
        arguments[key] = value
    return ToolCall(name=name, arguments=arguments)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _call_sample(request: _Request) -> Sample:
    return Sample(
        task="tool",
        messages=({"role": "user", "content": request.question},),
        tools=tuple(tool.schema for tool in request.tools),
        answer=_call_message(request.call),
        facts={"stage": "call", "tools": len(request.tools)},
        expected={"name": request.call.name, "arguments": request.call.arguments},
    )


def _answer_sample(request: _Request, call: ToolCall) -> Sample:
    values = _result(request, call)
    is_text = not request.keys
    content = str(values[TEXT_KEY]) if is_text else json.dumps(values)
    return Sample(
        task="tool",
        messages=(
            {"role": "user", "content": request.question},
            _call_message(call),
            {"role": "tool", "tool_call_id": CALL_ID, "content": content},
        ),
        tools=tuple(tool.schema for tool in request.tools),
        answer={"role": "assistant", "content": _report(values)},
        facts={"stage": "answer", "tools": len(request.tools)},
        expected={"values": values},
    )


def _call_message(call: ToolCall) -> Message:
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": CALL_ID, "type": "function", "function": function}],
    }


def _result(request: _Request, call: ToolCall) -> dict[str, int | str]:
    """What the toy tool gives: made up, and the same for the same call."""
    written = json.dumps([call.name, call.arguments], sort_keys=True)
    seed = hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    rng = Random(int.from_bytes(seed, "big"))
    return {
        key: words.word(rng, request.split)
        if rng.random() < 0.5
        else words.number(rng, request.split, 10, 9_999)
        for key in request.keys or (TEXT_KEY,)
    }


def _report(values: Mapping[str, int | str]) -> str:
    """One sentence with all of them."""
    text = " and ".join(f"the {key} is {_spoken(value)}" for key, value in values.items())
    return f"{text[0].upper()}{text[1:]}."


def _request(rng: Random, split: Split) -> _Request:
    tools = _tools(rng, split, rng.randint(1, MOST_TOOLS))
    tool = rng.choice(tools)
    arguments = {name: _value(rng, split, kind) for name, kind in tool.parameters.items()}
    stated = [f"{name} {_spoken(value)}" for name, value in arguments.items()]
    if rng.random() < SHUFFLED_SHARE:
        rng.shuffle(stated)
    template = words.pick(rng, REQUESTS, split, held_out=HELD_OUT_REQUESTS)
    question = template.format(task=tool.task, values=_listed(stated))
    num_keys = 0 if rng.random() < TEXT_RESULT_SHARE else rng.randint(1, 2)
    keys = KEYS[-HELD_OUT_KEYS:] if split == "held_out" else KEYS[:-HELD_OUT_KEYS]
    return _Request(
        question=question[0].upper() + question[1:],
        tools=tools,
        call=ToolCall(name=tool.name, arguments=arguments),
        keys=rng.sample(keys, num_keys),
        split=split,
    )


def _tools(rng: Random, split: Split, count: int) -> list[_Tool]:
    """Tools of different names that do different things."""
    tools: list[_Tool] = []
    while len(tools) < count:
        tool = _tool(rng, split)
        if all(tool.name != other.name and tool.task != other.task for other in tools):
            tools.append(tool)
    return tools


def _tool(rng: Random, split: Split) -> _Tool:
    verb = words.pick(rng, VERBS, split, held_out=HELD_OUT_VERBS)
    is_made_up = rng.random() < MADE_UP_NOUN_SHARE
    noun = words.word(rng, split) if is_made_up else words.pick(rng, NOUNS, split, held_out=HELD_OUT_NOUNS)
    is_mute = rng.random() < MADE_UP_NAME_SHARE
    return _Tool(
        name=words.word(rng, split) if is_mute else f"{verb}_{noun}",
        task=f"{verb} the {noun}",
        parameters=_parameters(rng, split),
    )


def _parameters(rng: Random, split: Split) -> dict[str, str]:
    """One to MOST_PARAMETERS, each of a name of its own."""
    found: dict[str, str] = {}
    for _ in range(rng.randint(1, MOST_PARAMETERS)):
        kind = rng.choice(KINDS)
        found[words.pick(rng, PARAMETERS[kind], split, held_out=HELD_OUT_PARAMETERS)] = kind
    return found


def _value(rng: Random, split: Split, kind: str) -> str | int | float | bool:
    if kind == "string":
        return words.name(rng, split)
    if kind == "integer":
        return words.number(rng, split, 1, 999)
    if kind == "number":
        return words.number(rng, split, 1, 99) + rng.randint(1, 9) / 10
    return rng.random() < 0.5


def _listed(items: Sequence[str]) -> str:
    """ "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def _spoken(value: object) -> str:
    """As people write it: yes and no for booleans."""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


TASK = Task(name="tool", draw=draw, is_right=is_right)
