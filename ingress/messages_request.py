"""A request of Anthropic's Messages API as a chat of ours.

Fields and blocks are renamed, nothing else: what comes out is read like any chat (ingress/schema.py). Knows
nothing of prompts and of answers (ingress/messages_answer.py).

Errors: InvalidRequest (ingress/errors.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ingress.errors import InvalidRequest
from ingress.options import Body, Count, Ratio
from ingress.schema import Messages

Json = dict[str, Any]
THINKING = {"enabled": "enabled", "adaptive": "enabled", "disabled": "disabled"}
CHOICES = {"auto": "auto", "none": "none", "any": "required"}


class Thinking(Body):
    """budget_tokens is accepted: reasoning counts towards max_tokens, which bounds it."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Count | None = None


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Body):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Messages
    system: str | list[Any] | None = None
    tools: list[Any] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None

    def as_chat(self) -> Json:
        """The fields of the same request to /v1/chat/completions."""
        system = [{"role": "system", "content": _joined(self.system, "system")}] if self.system else []
        messages = [chat for place, message in enumerate(self.messages) for chat in _messages(message, place)]
        if messages and messages[-1]["role"] == "assistant":
            messages[-1]["prefix"] = True  # Anthropic's way to put words into the model's mouth
        fields: Json = {"model": self.model, "messages": system + messages, **self._choice()}
        if self.tools:
            fields["tools"] = [_tool(tool, f"tools[{place}]") for place, tool in enumerate(self.tools)]
        if self.thinking is not None:
            fields["thinking"] = {"type": THINKING[self.thinking.type]}
        return fields

    def _choice(self) -> Json:
        choice = self.tool_choice
        if choice is None:
            return {}
        named = {"type": "function", "function": {"name": choice.name}}
        fields: Json = {"tool_choice": CHOICES.get(choice.type, named)}
        return {**fields, "parallel_tool_calls": False} if choice.disable_parallel_tool_use else fields


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: Count
    temperature: Ratio | None = None
    top_p: Ratio | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None

    def as_chat(self) -> Json:
        names = ("max_tokens", "temperature", "top_p", "top_k", "stream")
        return {
            **super().as_chat(),
            **{name: getattr(self, name) for name in names},
            "stop": self.stop_sequences,
        }


def _messages(message: Json, place: int) -> list[Json]:
    """One message of theirs as those of ours: tool results are messages of their own."""
    where, role, content = f"messages[{place}]", message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise InvalidRequest("role must be user or assistant", param=f"{where}.role")
    blocks = _blocks(content, f"{where}.content")
    if role == "assistant":
        return [_assistant(blocks)]
    results = [
        {
            "role": "tool",
            "tool_call_id": block.get("tool_use_id"),
            "content": _joined(block.get("content"), at),
        }
        for block, at in blocks
        if block["type"] == "tool_result"
    ]
    texts = [block.get("text") for block, _ in blocks if block["type"] == "text"]
    said = [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]
    return results + (said if texts or not results else [])


def _assistant(blocks: Sequence[tuple[Json, str]]) -> Json:
    message: Json = {"role": "assistant", "content": "".join(_texts(blocks, "text", "text"))}
    calls = [_call(block) for block, _ in blocks if block["type"] == "tool_use"]
    reasoning = list(_texts(blocks, "thinking", "thinking"))
    return {
        **message,
        **({"tool_calls": calls} if calls else {}),
        **({"reasoning_content": "".join(reasoning)} if reasoning else {}),
    }


def _call(block: Json) -> Json:
    arguments = json.dumps(block.get("input", {}), ensure_ascii=False)
    return {
        "type": "function",
        "id": block.get("id"),
        "function": {"name": block.get("name"), "arguments": arguments},
    }


def _texts(blocks: Sequence[tuple[Json, str]], kind: str, name: str) -> Iterator[str]:
    for block, where in blocks:
        if block["type"] == kind:
            if not isinstance(block.get(name), str):
                raise InvalidRequest(f"{name} must be a string", param=f"{where}.{name}")
            yield block[name]


def _blocks(content: Any, where: str) -> list[tuple[Json, str]]:
    """The blocks of a message and where each stands; a string is one block of text."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, where)]
    if not isinstance(content, list) or not content:
        raise InvalidRequest("content must be a string or a list of blocks", param=where)
    for place, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") not in SERVED_BLOCKS:
            raise InvalidRequest(
                f"a block must be one of {', '.join(SERVED_BLOCKS)}", param=f"{where}[{place}].type"
            )
    return [(block, f"{where}[{place}]") for place, block in enumerate(content)]


SERVED_BLOCKS = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking")


def _joined(content: Any, where: str) -> str:
    """Text, or blocks of text, as one text; nothing is the empty text."""
    if content is None or content == []:
        return ""
    blocks = _blocks(content, where)
    if any(block["type"] != "text" for block, _ in blocks):
        raise InvalidRequest("only text is served here", param=where)
    return "".join(_texts(blocks, "text", "text"))


def _tool(tool: Any, where: str) -> Json:
    if not isinstance(tool, dict) or tool.get("type", "custom") != "custom":
        raise InvalidRequest("only tools of the client's own are served", param=where)
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    if "description" in tool:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}
