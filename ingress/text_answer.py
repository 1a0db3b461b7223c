"""The JSON of text completions.

Deltas become stream chunks or the whole answer, in OpenAI's shapes. Knows nothing of how the deltas came
about and nothing of the wire (ingress/stream.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ingress.answer import Heading, Json, OpenAIAnswer, Usage, finish_fields, shows_anything, wants_logprobs
from ingress.logprobs import TextLogprobs
from ingress.order import Order
from ingress.output import Delta
from ingress.tokens import Tokenizer


class TextAnswer(OpenAIAnswer):
    """POST /v1/completions."""

    def __init__(self, heading: Heading, order: Order, tokenizer: Tokenizer) -> None:
        self._heading = heading
        self._order = order
        self._scored = [TextLogprobs(tokenizer) for _ in order.samplings]
        self._told_prompts: set[int] = set()

    def opening(self) -> list[Json]:
        """The prompts, where they are to be echoed; not those whose logprobs are still to come."""
        if self._order.output.scores_prompt:
            return []
        return [self._chunk(index, text) for index in self._choices() if (text := self._echo(index))]

    def chunks(self, delta: Delta) -> list[Json]:
        chunks = []
        if shows_anything(delta, self._order):
            extra = self._id_fields(delta)
            text = self._echo(delta.index) + delta.content if delta.prompt else delta.content
            chunks.append(self._chunk(delta.index, text, logprobs=self._logprobs(delta), **extra))
        if delta.finish is not None:
            chunks.append(self._chunk(delta.index, "", **finish_fields(delta)))
        return chunks

    def closing(self, usage: Usage) -> list[Json]:
        last = {**self._heading.fields("text_completion"), "choices": [], "usage": usage.fields()}
        return [last] if self._order.include_usage else []

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> Json:
        answer = self._heading.fields("text_completion")
        answer["choices"] = [self._choice(delta) for delta in deltas]
        answer["usage"] = usage.fields()
        return answer

    def _choices(self) -> range:
        return range(len(self._order.samplings))

    def _echo(self, index: int) -> str:
        return self._order.echoes[index // self._order.choices_per_prompt] if self._order.echoes else ""

    def _choice(self, delta: Delta) -> Json:
        return {
            "index": delta.index,
            "text": self._echo(delta.index) + delta.content,
            "logprobs": self._logprobs(delta),
            **finish_fields(delta),
            **self._id_fields(delta),
        }

    def _chunk(self, index: int, text: str, **rest: Any) -> Json:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **rest}
        return {**self._heading.fields("text_completion"), "choices": [choice]}

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
        if not wants_logprobs(self._order):
            return None
        scored, prompt_ids = self._scored[delta.index], self._order.prompt_of(delta.index)
        if delta.prompt is None:
            return scored.delta(delta)
        before = scored.prompt(prompt_ids, delta.prompt, keep_special=self._order.echoes_specials)
        after = scored.delta(delta)
        return {name: before[name] + after[name] for name in before}
