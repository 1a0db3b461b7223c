"""The JSON of an answer: chat and text completions.

One class per endpoint turns deltas into stream chunks or into the whole answer, in OpenAI's shapes. Knows
nothing of how the deltas came about and nothing of the wire (ingress/stream.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ingress.logprobs import chat_logprobs, text_logprobs
from ingress.order import Order
from ingress.output import Delta
from ingress.tokens import Tokenizer

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Heading:
    """What every chunk of an answer repeats."""

    answer_id: str
    created: int
    model: str


@dataclass(kw_only=True, slots=True)
class Usage:
    """Counts tokens as they are shown.

    A prompt is counted once, however many choices it makes; what was cached of it is what was for the choice
    with the least, which had to compute the rest.
    """

    num_prompt: int
    choices_per_prompt: int
    num_completion: int = 0
    num_reasoning: int = 0
    cached_of_prompt: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def of(order: Order) -> Usage:
        return Usage(num_prompt=order.num_prompt_tokens, choices_per_prompt=order.choices_per_prompt)

    def add(self, delta: Delta) -> None:
        self.num_completion += len(delta.token_ids)
        self.num_reasoning += delta.num_reasoning
        if delta.num_cached is not None:
            prompt = delta.index // self.choices_per_prompt
            known = self.cached_of_prompt.get(prompt, delta.num_cached)
            self.cached_of_prompt[prompt] = min(known, delta.num_cached)

    def fields(self) -> Json:
        num_cached = sum(self.cached_of_prompt.values())
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_completion,
            "total_tokens": self.num_prompt + self.num_completion,
            "prompt_tokens_details": {"cached_tokens": num_cached},
            "prompt_cache_hit_tokens": num_cached,
            "prompt_cache_miss_tokens": self.num_prompt - num_cached,
            "completion_tokens_details": {"reasoning_tokens": self.num_reasoning},
        }


class Answer(Protocol):
    """How one endpoint writes its answer."""

    def opening(self) -> list[Json]:
        """The chunks before any token."""

    def chunks(self, delta: Delta) -> list[Json]:
        """The chunks for one delta: none, what it adds, the finish."""

    def usage(self, usage: Usage) -> Json:
        """The chunk after every finish."""

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> Json:
        """The answer at once, from one joined delta per choice."""


class ChatAnswer:
    """POST /v1/chat/completions."""

    def __init__(self, heading: Heading, order: Order, tokenizer: Tokenizer) -> None:
        self._heading = heading
        self._order = order
        self._tokenizer = tokenizer

    def opening(self) -> list[Json]:
        return [self._opening_chunk(index) for index in range(len(self._order.samplings))]

    def chunks(self, delta: Delta) -> list[Json]:
        chunks = []
        if _shows(delta, self._order):
            added = {"reasoning_content": delta.reasoning} if delta.reasoning else {}
            if delta.content or not delta.reasoning:
                added["content"] = delta.content
            extra = {"token_ids": list(delta.token_ids)} if self._order.return_token_ids else {}
            chunks.append(self._chunk(delta.index, added, logprobs=self._logprobs(delta), **extra))
        if delta.finish is not None:
            chunks.append(self._chunk(delta.index, {}, **_finish(delta)))
        return chunks

    def usage(self, usage: Usage) -> Json:
        return {**self._base("chat.completion.chunk"), "choices": [], "usage": usage.fields()}

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> Json:
        answer = self._base("chat.completion")
        answer["choices"] = [self._choice(delta) for delta in deltas]
        answer["usage"] = usage.fields()
        if self._order.return_token_ids:
            answer["prompt_token_ids"] = self._order.prompts[0]
        return answer

    def _choice(self, delta: Delta) -> Json:
        message = {"role": "assistant", "content": delta.content, "refusal": None}
        if self._order.output.starts_in_reasoning:
            message["reasoning_content"] = delta.reasoning
        choice = {
            "index": delta.index,
            "message": message,
            "logprobs": self._logprobs(delta),
            **_finish(delta),
        }
        return {**choice, "token_ids": list(delta.token_ids)} if self._order.return_token_ids else choice

    def _opening_chunk(self, index: int) -> Json:
        chunk = self._chunk(index, {"role": "assistant", "content": ""})
        if self._order.return_token_ids and index == 0:
            chunk["prompt_token_ids"] = self._order.prompts[0]
        return chunk

    def _chunk(self, index: int, added: Json, **rest: Any) -> Json:
        choice = {"index": index, "delta": added, "logprobs": None, "finish_reason": None, **rest}
        chunk = {**self._base("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self._order.include_usage else chunk

    def _base(self, kind: str) -> Json:
        return _base(self._heading, kind)

    def _logprobs(self, delta: Delta) -> Json | None:
        return chat_logprobs(delta, self._tokenizer) if _wants_logprobs(self._order) else None


class TextAnswer:
    """POST /v1/completions."""

    def __init__(self, heading: Heading, order: Order, tokenizer: Tokenizer) -> None:
        self._heading = heading
        self._order = order
        self._tokenizer = tokenizer
        self._offsets = [0] * len(order.samplings)  # of the next token, in the text of each choice
        self._told_prompts: set[int] = set()

    def opening(self) -> list[Json]:
        return []

    def chunks(self, delta: Delta) -> list[Json]:
        chunks = []
        if _shows(delta, self._order):
            extra = self._id_fields(delta)
            chunks.append(self._chunk(delta.index, delta.content, logprobs=self._logprobs(delta), **extra))
        if delta.finish is not None:
            chunks.append(self._chunk(delta.index, "", **_finish(delta)))
        return chunks

    def usage(self, usage: Usage) -> Json:
        return {**_base(self._heading, "text_completion"), "choices": [], "usage": usage.fields()}

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> Json:
        answer = _base(self._heading, "text_completion")
        answer["choices"] = [self._choice(delta) for delta in deltas]
        answer["usage"] = usage.fields()
        return answer

    def _choice(self, delta: Delta) -> Json:
        return {
            "index": delta.index,
            "text": delta.content,
            "logprobs": self._logprobs(delta),
            **_finish(delta),
            **self._id_fields(delta),
        }

    def _chunk(self, index: int, text: str, **rest: Any) -> Json:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **rest}
        return {**_base(self._heading, "text_completion"), "choices": [choice]}

    def _id_fields(self, delta: Delta) -> Json:
        """Token ids where they are wanted; those of the prompt with a choice's first."""
        if not self._order.return_token_ids:
            return {}
        fields: Json = {"token_ids": list(delta.token_ids)}
        if delta.index not in self._told_prompts:
            self._told_prompts.add(delta.index)
            fields["prompt_token_ids"] = self._order.prompt_of(delta.index)
        return fields

    def _logprobs(self, delta: Delta) -> Json | None:
        if not _wants_logprobs(self._order):
            return None
        fields, self._offsets[delta.index] = text_logprobs(delta, self._tokenizer, self._offsets[delta.index])
        return fields


def joined(deltas: Sequence[Delta]) -> Delta:
    """All deltas of one choice as one."""
    chain = itertools.chain.from_iterable
    return Delta(
        index=deltas[-1].index,
        content="".join(delta.content for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        token_ids=tuple(chain(delta.token_ids for delta in deltas)),
        logprobs=tuple(chain(delta.logprobs for delta in deltas)),
        top=tuple(chain(delta.top for delta in deltas)),
        num_reasoning=sum(delta.num_reasoning for delta in deltas),
        finish=deltas[-1].finish,
        is_late=deltas[-1].is_late,
    )


def _base(heading: Heading, kind: str) -> Json:
    return {"id": heading.answer_id, "object": kind, "created": heading.created, "model": heading.model}


def _finish(delta: Delta) -> Json:
    """Why the choice ended. A deadline is a `length` to clients that know OpenAI's reasons only."""
    return {"finish_reason": delta.finish, **({"stop_reason": "deadline"} if delta.is_late else {})}


def _shows(delta: Delta, order: Order) -> bool:
    """Whether a chunk for `delta` would say anything: its text may be held back."""
    wants_tokens = order.return_token_ids or _wants_logprobs(order)
    return bool(delta.content or delta.reasoning or (wants_tokens and delta.token_ids))


def _wants_logprobs(order: Order) -> bool:
    return order.samplings[0].logprobs is not None
