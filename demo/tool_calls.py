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

from demo import tool_words
from demo.phrases import say
from demo.sample import Message, Sample, Split, Task

CALL_SHARE = 0.6  # of the samples end in a call, the rest in a report of its result
CALL_ID = "call_0"
MOST_TOOLS, MOST_PARAMETERS = 3, 3
TEXT_RESULT_SHARE = 0.3
SHUFFLED_SHARE = 0.3
SAME_VERB_SHARE = 0.3  # of the tools beside another differ from it by the noun alone
TEXT_KEY = "answer"

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
    """parameters: name -> type of JSON schema. task: what a user asks for; the description holds it."""

    name: str
    task: str
    description: str
    parameters: Mapping[str, str]

    @property
    def schema(self) -> Mapping[str, Any]:
        properties = {name: {"type": kind} for name, kind in self.parameters.items()}
        function = {
            "name": self.name,
            "description": self.description,
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
    return {key: tool_words.result_value(rng, request.split) for key in request.keys or (TEXT_KEY,)}


def _report(values: Mapping[str, int | str]) -> str:
    """One sentence with all of them."""
    text = " and ".join(f"the {key} is {_spoken(value)}" for key, value in values.items())
    return f"{text[0].upper()}{text[1:]}."


def _request(rng: Random, split: Split) -> _Request:
    tools = _tools(rng, split, rng.randint(1, MOST_TOOLS))
    tool = rng.choice(tools)
    arguments = {name: tool_words.value(rng, split, kind) for name, kind in tool.parameters.items()}
    # One way to write them all.
    setting = rng.choice(tool_words.SETTINGS)
    stated = [setting.format(name=name, value=_spoken(value)) for name, value in arguments.items()]
    if rng.random() < SHUFFLED_SHARE:
        rng.shuffle(stated)
    asked = say(rng, tool_words.REQUESTS, split).format(task=tool.task, values=_listed(stated))
    num_keys = 0 if rng.random() < TEXT_RESULT_SHARE else rng.randint(1, 2)
    return _Request(
        question=asked[0].upper() + asked[1:],
        tools=tools,
        call=ToolCall(name=tool.name, arguments=arguments),
        keys=tool_words.terms(rng, split, num_keys),
        split=split,
    )


def _tools(rng: Random, split: Split, count: int) -> list[_Tool]:
    """Tools of different names that do different things."""
    tools: list[_Tool] = []
    while len(tools) < count:
        tool = _tool(rng, split, verb_of=tools[-1] if tools and rng.random() < SAME_VERB_SHARE else None)
        if all(tool.name != other.name and tool.task != other.task for other in tools):
            tools.append(tool)
    return tools


def _tool(rng: Random, split: Split, *, verb_of: _Tool | None) -> _Tool:
    verb = verb_of.task.partition(" ")[0] if verb_of else tool_words.verb(rng, split)
    noun = tool_words.noun(rng, split)
    task = f"{verb} the {noun}"
    described = say(rng, tool_words.DESCRIPTIONS, split).format(task=task)
    names = tool_words.terms(rng, split, rng.randint(1, MOST_PARAMETERS))
    return _Tool(
        name=tool_words.tool_name(rng, split, verb, noun),
        task=task,
        description=described[0].upper() + described[1:],
        # Any type for any name: it can only be read from the schema.
        parameters={name: rng.choice(tool_words.KINDS) for name in names},
    )


def _listed(items: Sequence[str]) -> str:
    """ "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def _spoken(value: object) -> str:
    """As people write it: yes and no for booleans."""
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


TASK = Task(name="tool", draw=draw, is_right=is_right)
