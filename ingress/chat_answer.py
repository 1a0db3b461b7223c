"""The JSON of chat completions.

Deltas become stream chunks or the whole answer, in OpenAI's shapes. Knows nothing of how the deltas came
about and nothing of the wire (ingress/stream.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from ingress.answer import Heading, Json, OpenAIAnswer, Usage, finish_fields, shows_anything, wants_logprobs
from ingress.dsml import ToolCall
from ingress.logprobs import chat_logprobs
from ingress.order import Order
from ingress.output import Delta
from ingress.tokens import Tokenizer


class ChatAnswer(OpenAIAnswer):
    """POST /v1/chat/completions."""

    def __init__(self, heading: Heading, order: Order, tokenizer: Tokenizer) -> None:
        self._heading = heading
        self._order = order
        self._tokenizer = tokenizer
        self._num_calls = [0] * len(order.samplings)  # told so far, of each choice

    def opening(self) -> list[Json]:
        return [self._opening_chunk(index) for index in range(len(self._order.samplings))]

    def chunks(self, delta: Delta) -> list[Json]:
        chunks = []
        if shows_anything(delta, self._order):
            added = _reasoning_fields(delta) if delta.reasoning else {}
            if delta.content or not delta.reasoning:
                added["content"] = delta.content
            extra = {"token_ids": list(delta.token_ids)} if self._order.return_token_ids else {}
            chunks.append(self._chunk(delta.index, added, logprobs=self._logprobs(delta), **extra))
        for call in delta.calls:
            chunks.extend(self._call_chunks(delta.index, call))
        if delta.finish is not None:
            chunks.append(self._chunk(delta.index, {}, **finish_fields(delta)))
        return chunks

    def closing(self, usage: Usage) -> list[Json]:
        last = {**self._heading.fields("chat.completion.chunk"), "choices": [], "usage": usage.fields()}
        return [last] if self._order.include_usage else []

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> Json:
        answer = self._heading.fields("chat.completion")
        answer["choices"] = [self._choice(delta) for delta in deltas]
        answer["usage"] = usage.fields()
        if self._order.return_token_ids:
            answer["prompt_token_ids"] = self._order.prompts[0]
        return answer

    def _choice(self, delta: Delta) -> Json:
        content = None if delta.calls and not delta.content else delta.content
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if self._order.output.starts_in_reasoning:
            message |= _reasoning_fields(delta)
        if delta.calls:
            message["tool_calls"] = [
                {**_call_heading(), "function": {"name": call.name, "arguments": call.arguments}}
                for call in delta.calls
            ]
        choice = {
            "index": delta.index,
            "message": message,
            "logprobs": self._logprobs(delta),
            **finish_fields(delta),
        }
        return {**choice, "token_ids": list(delta.token_ids)} if self._order.return_token_ids else choice

    def _opening_chunk(self, index: int) -> Json:
        chunk = self._chunk(index, {"role": "assistant", "content": ""})
        if self._order.return_token_ids and index == 0:
            chunk["prompt_token_ids"] = self._order.prompts[0]
        return chunk

    def _call_chunks(self, index: int, call: ToolCall) -> list[Json]:
        """The name, then the arguments, as clients expect them in a stream."""
        place = self._num_calls[index]
        self._num_calls[index] += 1
        named = {"index": place, **_call_heading(), "function": {"name": call.name, "arguments": ""}}
        argued = {"index": place, "function": {"arguments": call.arguments}}
        return [self._chunk(index, {"tool_calls": [part]}) for part in (named, argued)]

    def _chunk(self, index: int, added: Json, **rest: Any) -> Json:
        choice = {"index": index, "delta": added, "logprobs": None, "finish_reason": None, **rest}
        chunk = {**self._heading.fields("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self._order.include_usage else chunk

    def _logprobs(self, delta: Delta) -> Json | None:
        return chat_logprobs(delta, self._tokenizer) if wants_logprobs(self._order) else None


def _reasoning_fields(delta: Delta) -> Json:
    """Under both of the names that clients look for."""
    return {"reasoning_content": delta.reasoning, "reasoning": delta.reasoning}


def _call_heading() -> Json:
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
