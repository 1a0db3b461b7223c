"""What a client sent as messages, checked, as turns.

Tool messages are folded into the turn that called them; the request's own tools and response format join the
first system turn. Knows nothing of how a turn is written for the model (ingress/encoding.py).

Choices where the format leaves room:
- Text parts of one message are joined without a separator; null or missing content is the empty string.
- `developer` is the format's own developer turn, a user turn that may carry tools; no other name of system.

Errors: PromptError (ingress/values.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ingress.values import PromptError, checked_json, checked_text, kind_of, shown

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A function call of an assistant turn. `where` names it in errors, as does a turn's."""

    id: str | None
    name: str
    arguments: Mapping[str, Any]
    where: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One message; tool messages are folded into the turn that called them."""

    role: str
    where: str
    text: str = ""
    tools: tuple[str, ...] = ()  # function definitions, as JSON
    schema: str | None = None  # of the reply, as JSON
    reasoning: str | None = None
    calls: tuple[Call, ...] = ()
    places: dict[str, int] = field(default_factory=dict)  # call id -> index in calls
    results: dict[int, str] = field(default_factory=dict)  # index in calls -> text; filled while reading
    is_prefix: bool = False


def read_turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The turns of `messages`, at least one; raises PromptError."""
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise PromptError(f"a message is an object, not {kind_of(message)}", where)
        if message.get("role") == "tool":
            _answer(turns[-1] if turns else None, message, where)
            continue
        if turns:
            _check_finished(turns[-1])
        turns.append(_turn(message, where))
    if not turns:
        raise PromptError("there is no message to answer", "messages")
    if turns[-1].results:
        _check_finished(turns[-1])
    return turns


def attached(
    turns: list[Turn],
    tools: Sequence[Mapping[str, Any]] | None,
    response_format: Mapping[str, Any] | None,
) -> list[Turn]:
    """`turns` with the request's own tools and response format on the first system message."""
    functions, schema = _functions(tools, "tools"), _schema(response_format)
    if not functions and schema is None:
        return turns
    host = next((index for index, turn in enumerate(turns) if turn.role == "system"), None)
    if host is None:
        turns, host = [Turn(role="system", where="messages"), *turns], 0
    turn = turns[host]
    if functions and turn.tools:
        raise PromptError(f"the request and {turn.where} both give tools: give one list", "tools")
    if schema is not None and turn.schema is not None:
        raise PromptError(f"the request and {turn.where} both give a format: give one", "response_format")
    joined = replace(turn, tools=functions or turn.tools, schema=turn.schema if schema is None else schema)
    return [*turns[:host], joined, *turns[host + 1 :]]


def _turn(message: Mapping[str, Any], where: str) -> Turn:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(f"role is {shown(role)}: must be one of {', '.join(ROLES)}", f"{where}.role")
    text = _content(message, where)
    if role == "assistant":
        return _assistant_turn(message, text, where)
    if message.get("prefix"):
        raise PromptError(f"a {role} message cannot be continued", f"{where}.prefix")
    if role == "developer" and not text:
        raise PromptError("a developer message needs content", f"{where}.content")
    if role == "user":
        return Turn(role=role, where=where, text=text)
    schema = message.get("response_format")
    return Turn(
        role=role,
        where=where,
        text=text,
        tools=_functions(message.get("tools"), f"{where}.tools"),
        schema=None if schema is None else checked_json(schema, f"{where}.response_format"),
    )


def _assistant_turn(message: Mapping[str, Any], text: str, where: str) -> Turn:
    calls = _calls(message.get("tool_calls"), f"{where}.tool_calls")
    prefix = message.get("prefix")
    if prefix is not None and not isinstance(prefix, bool):
        raise PromptError(f"prefix is {shown(prefix)}: must be true or false", f"{where}.prefix")
    if prefix and calls:
        raise PromptError("a turn with tool calls is finished and cannot be continued", f"{where}.prefix")
    places: dict[str, int] = {}
    for place, call in enumerate(calls):
        if call.id is not None and places.setdefault(call.id, place) != place:
            raise PromptError(f"two tool calls have the id {shown(call.id)}", f"{call.where}.id")
    return Turn(
        role="assistant",
        where=where,
        text=text,
        reasoning=_reasoning(message, where),
        calls=calls,
        places=places,
        is_prefix=bool(prefix),
    )


def _reasoning(message: Mapping[str, Any], where: str) -> str | None:
    """The turn's reasoning under either of its two names; `reasoning_content` wins."""
    for name in ("reasoning_content", "reasoning"):
        if message.get(name) is not None:
            return checked_text(message[name], f"{where}.{name}")
    return None


def _content(message: Mapping[str, Any], where: str) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if not isinstance(content, list | tuple):
        return checked_text(content, f"{where}.content")
    parts = []
    for place, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise PromptError("only text parts are served", f"{where}.content[{place}]")
        parts.append(checked_text(part.get("text"), f"{where}.content[{place}].text"))
    return "".join(parts)


def _answer(turn: Turn | None, message: Mapping[str, Any], where: str) -> None:
    """Put a tool message in the place of its call: by id where it names one, else by position."""
    if message.get("prefix"):
        raise PromptError("a tool message cannot be continued", f"{where}.prefix")
    if turn is None or not turn.calls:
        raise PromptError("a tool message must follow an assistant message with tool_calls", where)
    call_id = message.get("tool_call_id")
    if call_id is None:
        place = len(turn.results)
        if place >= len(turn.calls):
            raise PromptError(f"more tool messages than the {len(turn.calls)} calls of {turn.where}", where)
    elif isinstance(call_id, str) and call_id in turn.places:
        place = turn.places[call_id]
    else:
        raise PromptError(f"{turn.where} has no tool call {shown(call_id)}", f"{where}.tool_call_id")
    if place in turn.results:
        raise PromptError(f"tool call {place} of {turn.where} has two results", f"{where}.tool_call_id")
    turn.results[place] = _content(message, where)


def _check_finished(turn: Turn) -> None:
    """Another message may follow `turn`."""
    if len(turn.results) < len(turn.calls):
        missing = next(call for place, call in enumerate(turn.calls) if place not in turn.results)
        raise PromptError(
            f"{turn.where} has {len(turn.calls)} tool calls but {len(turn.results)} results: "
            f"add a tool message for {shown(missing.id or missing.name)}",
            missing.where,
        )
    if turn.is_prefix:
        raise PromptError("only the last message can be continued", f"{turn.where}.prefix")


def _calls(calls: Any, where: str) -> tuple[Call, ...]:
    if calls is None:
        return ()
    if not isinstance(calls, list | tuple):
        raise PromptError(f"tool_calls is a list, not {kind_of(calls)}", where)
    return tuple(_call(call, f"{where}[{place}]") for place, call in enumerate(calls))


def _call(call: Any, where: str) -> Call:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        raise PromptError("a tool call is an object with a function", where)
    if call.get("type") not in (None, "function"):
        raise PromptError(f"tool call type is {shown(call['type'])}: must be function", f"{where}.type")
    call_id = call.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise PromptError(f"a tool call id is a string, not {kind_of(call_id)}", f"{where}.id")
    function = call["function"]
    return Call(
        id=call_id,
        name=checked_text(function.get("name"), f"{where}.function.name"),
        arguments=_arguments(function.get("arguments"), f"{where}.function.arguments"),
        where=where,
    )


def _arguments(arguments: Any, where: str) -> Mapping[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise PromptError("arguments is not JSON: must be a JSON object", where) from None
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise PromptError(f"arguments is {kind_of(arguments)}: must be a JSON object", where)
    return arguments


def _functions(tools: Any, where: str) -> tuple[str, ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list | tuple):
        raise PromptError(f"tools is a list, not {kind_of(tools)}", where)
    for place, tool in enumerate(tools):
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function"), Mapping):
            raise PromptError("a tool is an object with a function", f"{where}[{place}]")
    return tuple(
        checked_json(tool["function"], f"{where}[{place}].function") for place, tool in enumerate(tools)
    )


def _schema(response_format: Mapping[str, Any] | None) -> str | None:
    """The schema that a request's response_format asks for, as JSON; None for free text."""
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise PromptError(f"response_format is an object, not {kind_of(response_format)}", "response_format")
    match response_format.get("type"):
        case "text":
            return None
        case "json_object":
            return checked_json({"type": "object"}, "response_format")
        case "json_schema":
            described = response_format.get("json_schema")
            if not isinstance(described, Mapping) or not isinstance(described.get("schema"), Mapping):
                raise PromptError("json_schema is an object with a schema", "response_format.json_schema")
            return checked_json(described["schema"], "response_format.json_schema.schema")
        case other:
            raise PromptError(
                f"type is {shown(other)}: must be text, json_object or json_schema", "response_format.type"
            )
