"""The JSON of Anthropic's Messages API.

Deltas become its events or the whole message. Knows nothing of how the deltas came about and nothing of the
wire (ingress/stream.py).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from ingress.answer import Heading, Json, Usage
from ingress.dsml import ToolCall
from ingress.errors import RequestError, message_error_fields
from ingress.order import Order
from ingress.output import FINISH_CALLS, Delta

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", FINISH_CALLS: "tool_use"}


class MessagesAnswer:
    """POST /v1/messages. One choice; each run of text, of reasoning and each call is a content block."""

    end = ""

    def __init__(self, heading: Heading, order: Order) -> None:
        self._heading = heading
        self._order = order
        self._num_blocks = 0
        self._open: str | None = None  # the kind of the block that is being told
        self._finish: Delta | None = None

    def opening(self) -> list[Json]:
        started = self._message([], None, Usage.of(self._order))
        return [{"type": "message_start", "message": started}]

    def chunks(self, delta: Delta) -> list[Json]:
        events = []
        if delta.reasoning:
            events += self._told("thinking", {"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.content:
            events += self._told("text", {"type": "text_delta", "text": delta.content})
        for call in delta.calls:
            told = {"type": "input_json_delta", "partial_json": call.arguments}
            events += [*self._begun(_call_block(call, {})), self._delta(told), *self._ended()]
        if delta.finish is not None:
            self._finish = delta
            events += self._ended()
        return events

    def closing(self, usage: Usage) -> list[Json]:
        assert self._finish is not None, "the last delta came before"
        reason = {"type": "message_delta", "delta": _reason(self._finish), "usage": _usage(usage)}
        return [reason, {"type": "message_stop"}]

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> Json:
        [delta] = deltas
        content: list[Json] = []
        if delta.reasoning:
            content.append({**_empty_block("thinking"), "thinking": delta.reasoning})
        if delta.content:
            content.append({"type": "text", "text": delta.content})
        content += [_call_block(call, json.loads(call.arguments)) for call in delta.calls]
        return self._message(content, delta, usage)

    def name(self, chunk: Json) -> str | None:
        return str(chunk["type"])

    def failure(self, error: RequestError) -> Json:
        return message_error_fields(error)

    def _message(self, content: list[Json], finish: Delta | None, usage: Usage) -> Json:
        return {
            "id": self._heading.answer_id,
            "type": "message",
            "role": "assistant",
            "model": self._heading.model,
            "content": content,
            **_reason(finish),
            "usage": _usage(usage),
        }

    def _told(self, kind: str, told: Json) -> list[Json]:
        begun = [] if self._open == kind else self._begun(_empty_block(kind))
        return [*begun, self._delta(told)]

    def _begun(self, block: Json) -> list[Json]:
        ended = self._ended()
        self._open = block["type"]
        return [*ended, {"type": "content_block_start", "index": self._num_blocks, "content_block": block}]

    def _delta(self, told: Json) -> Json:
        return {"type": "content_block_delta", "index": self._num_blocks, "delta": told}

    def _ended(self) -> list[Json]:
        if self._open is None:
            return []
        self._open = None
        self._num_blocks += 1
        return [{"type": "content_block_stop", "index": self._num_blocks - 1}]


def _empty_block(kind: str) -> Json:
    return {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}


def _call_block(call: ToolCall, arguments: Any) -> Json:
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name, "input": arguments}


def _reason(finish: Delta | None) -> Json:
    if finish is None:
        return {"stop_reason": None, "stop_sequence": None}
    if finish.stop_string is not None and finish.finish != FINISH_CALLS:
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop_string}
    return {"stop_reason": STOP_REASONS[finish.finish or ""], "stop_sequence": None}


def _usage(usage: Usage) -> Json:
    """What was cached is counted apart, as there."""
    cached = usage.num_cached
    return {
        "input_tokens": usage.num_prompt - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.num_completion,
    }
