"""A conversation as a client keeps it.

Chunks of a stream in, pieces to show out, and the message to send back next time. Knows nothing of terminals
and of connections.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["reasoning", "content", "call"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Something to show, in the order in which it came."""

    kind: Kind
    text: str


@dataclass(slots=True)
class Reply:
    """What an assistant says, while it says it."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None

    def add(self, chunk: Mapping[str, Any]) -> Iterator[Piece]:
        """The pieces of one chunk. A call is shown name first, then its arguments as they come."""
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", []):
            delta = choice.get("delta", {})
            if text := delta.get("reasoning_content") or "":
                self.reasoning += text
                yield Piece("reasoning", text)
            if text := delta.get("content") or "":
                self.content += text
                yield Piece("content", text)
            for part in delta.get("tool_calls") or []:
                yield Piece("call", self._add_call(part))
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def message(self) -> dict[str, Any]:
        """To be sent back with the next turn; reasoning only where a call needs it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.calls:
            message |= {"tool_calls": self.calls, "reasoning_content": self.reasoning}
        return message

    def told(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "content": self.content,
            "reasoning_content": self.reasoning or None,
            "tool_calls": self.calls,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
        }

    def _add_call(self, part: Mapping[str, Any]) -> str:
        """What is to be shown of it."""
        function = part.get("function", {})
        while len(self.calls) <= part["index"]:
            self.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call = self.calls[part["index"]]
        call["id"] = part.get("id") or call["id"]
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        call["function"]["name"] += name
        call["function"]["arguments"] += arguments
        return f"\n{name} {arguments}" if name else arguments


@dataclass(slots=True)
class Conversation:
    """The messages so far."""

    messages: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def begun(system: str | None) -> Conversation:
        return Conversation([{"role": "system", "content": system}] if system else [])

    def ask(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def answered(self, reply: Reply) -> None:
        self.messages.append(reply.message())

    def unask(self) -> None:
        """The last question had no answer: as if it had not been asked."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
