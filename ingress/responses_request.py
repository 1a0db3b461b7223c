"""A request of OpenAI's Responses API as a chat of ours.

Fields and items are renamed, nothing else: what comes out is read like any chat (ingress/schema.py). Nothing
is stored, so whatever names an earlier response is refused. Knows nothing of prompts and of answers
(ingress/responses_answer.py).

Errors: InvalidRequest (ingress/errors.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ingress.errors import InvalidRequest
from ingress.options import Body, Count
from ingress.schema import MAX_MESSAGES

Json = dict[str, Any]
ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
TEXT_PARTS = ("input_text", "output_text", "text")
RENAMED = (
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
)
IN_TOOL = re.compile(r"^(tools\[\d+\])\.function")
NOT_SERVED = ("background", "conversation", "previous_response_id", "prompt", "top_logprobs")


class ResponsesRequest(Body):
    """POST /v1/responses."""

    model: str
    input: str | Annotated[list[Json], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Any] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Json | None = None
    text: Json | None = None
    stream: bool | None = None

    @model_validator(mode="after")
    def _check_stateless(self) -> Self:
        for name in NOT_SERVED:
            if (self.model_extra or {}).get(name):
                raise InvalidRequest(
                    f"{name} is not supported: send the whole conversation as input",
                    param=name,
                    code="unsupported_parameter",
                )
        return self

    def as_chat(self) -> Json:
        """The fields of the same request to /v1/chat/completions."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        fields: Json = {
            "model": self.model,
            "messages": system + self._messages(),
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "tool_choice": _choice(self.tool_choice) if self.tools else None,
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning_effort": (self.reasoning or {}).get("effort"),
            "response_format": _format((self.text or {}).get("format")),
            "stream": self.stream,
        }
        if self.tools:
            fields["tools"] = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(self.tools)]
        return fields

    def told(self) -> Json:
        """What an answer repeats of its request."""
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "tools": self.tools or [],
            "tool_choice": self.tool_choice or "auto",
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "reasoning": {"effort": (self.reasoning or {}).get("effort"), "summary": None},
            "text": {"format": (self.text or {}).get("format") or {"type": "text"}},
            "metadata": (self.model_extra or {}).get("metadata") or {},
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
        }

    def _messages(self) -> list[Json]:
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        messages: list[Json] = []
        for place, item in enumerate(self.input):
            _add(messages, item, f"input[{place}]")
        return messages


def _add(messages: list[Json], item: Json, where: str) -> None:
    """One more item: reasoning, text and calls of one turn are one message."""
    match item.get("type", "message"):
        case "message":
            said = item.get("role")
            if not isinstance(said, str) or said not in ROLES:
                raise InvalidRequest(f"role must be one of {', '.join(ROLES)}", param=f"{where}.role")
            role, text = ROLES[said], _text(item.get("content"), f"{where}.content")
            has_begun = (
                role == "assistant" and messages and messages[-1].keys() == {"role", "reasoning_content"}
            )
            if has_begun:
                messages[-1]["content"] = text
            else:
                messages.append({"role": role, "content": text})
        case "reasoning":
            thoughts = _text(item.get("content") or [], f"{where}.content", ("reasoning_text",))
            messages.append({"role": "assistant", "reasoning_content": thoughts})
        case "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant"})
            messages[-1].setdefault("tool_calls", []).append(_call(item))
        case "function_call_output":
            output = _text(item.get("output"), f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        case _:
            raise InvalidRequest(
                "an item must be a message, reasoning, function_call or function_call_output",
                param=f"{where}.type",
            )


def _call(item: Json) -> Json:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"type": "function", "id": item.get("call_id"), "function": function}


def _text(content: Any, where: str, kinds: tuple[str, ...] = TEXT_PARTS) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest("must be a string or a list of parts", param=where)
    texts = []
    for place, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") in kinds else None
        if not isinstance(text, str):
            raise InvalidRequest(f"a part must be {' or '.join(kinds)}", param=f"{where}[{place}]")
        texts.append(text)
    return "".join(texts)


def _tool(tool: Any, where: str) -> Json:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise InvalidRequest("only tools of type function are served", param=f"{where}.type")
    known = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
    return {"type": "function", "function": known}


def _format(told: Any) -> Any:
    """A schema stands beside its type here, one level further down there."""
    if not isinstance(told, dict) or told.get("type") != "json_schema":
        return told
    known = {name: told[name] for name in ("name", "description", "schema", "strict") if name in told}
    return {"type": "json_schema", "json_schema": known}


def own_name(param: str | None) -> str | None:
    """What a field of the chat is called here. Of messages only that: an item need not be one of them."""
    if param is None:
        return None
    if param.startswith("messages"):
        return "input"
    for theirs, ours in RENAMED:
        if param.startswith(theirs):
            return ours + param.removeprefix(theirs)
    return IN_TOOL.sub(r"\1", param)


def _choice(choice: str | Json | None) -> str | Json | None:
    if not isinstance(choice, dict):
        return choice
    return {"type": "function", "function": {"name": choice.get("name")}}
