"""What the answers of all endpoints share.

Their heading, their usage, one delta for all of a choice. Knows nothing of how the deltas came about and
nothing of the wire (ingress/stream.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ingress.errors import RequestError, error_fields
from ingress.order import Order
from ingress.output import Delta

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Heading:
    """What every chunk of an answer repeats."""

    answer_id: str
    created: int
    model: str

    def fields(self, kind: str) -> Json:
        return {"id": self.answer_id, "object": kind, "created": self.created, "model": self.model}


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

    @property
    def num_cached(self) -> int:
        return sum(self.cached_of_prompt.values())

    def fields(self) -> Json:
        num_cached = self.num_cached
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
    """How one endpoint writes its answer. end: the data of the last event, if there is one more."""

    end: str

    def opening(self) -> list[Json]:
        """The chunks before any token."""

    def chunks(self, delta: Delta) -> list[Json]:
        """The chunks for one delta: none, what it adds, the finish."""

    def closing(self, usage: Usage) -> list[Json]:
        """The chunks after every finish."""

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> Json:
        """The answer at once, from one joined delta per choice."""

    def name(self, chunk: Json) -> str | None:
        """Of the event that carries `chunk`."""

    def failure(self, error: RequestError) -> Json:
        """The chunk that ends a stream in an error."""


class OpenAIAnswer:
    """Streams as OpenAI's: events without names, one more to end them."""

    end = "[DONE]"

    def name(self, _: Json) -> None:
        return None

    def failure(self, error: RequestError) -> Json:
        return dict(error_fields(error))


def joined(deltas: Sequence[Delta]) -> Delta:
    """All deltas of one choice as one."""
    chain = itertools.chain.from_iterable
    return Delta(
        index=deltas[-1].index,
        content="".join(delta.content for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        calls=tuple(chain(delta.calls for delta in deltas)),
        token_ids=tuple(chain(delta.token_ids for delta in deltas)),
        logprobs=tuple(chain(delta.logprobs for delta in deltas)),
        top=tuple(chain(delta.top for delta in deltas)),
        prompt=next((delta.prompt for delta in deltas if delta.prompt is not None), None),
        num_reasoning=sum(delta.num_reasoning for delta in deltas),
        finish=deltas[-1].finish,
        is_late=deltas[-1].is_late,
        stop_string=deltas[-1].stop_string,
    )


def finish_fields(delta: Delta) -> Json:
    """Why the choice ended. A deadline is a `length` to clients that know OpenAI's reasons only."""
    return {"finish_reason": delta.finish, **({"stop_reason": "deadline"} if delta.is_late else {})}


def shows_anything(delta: Delta, order: Order) -> bool:
    """Whether a chunk for `delta` would say anything: its text may be held back."""
    wants_tokens = order.return_token_ids or wants_logprobs(order)
    says_text = bool(delta.content or delta.reasoning or delta.prompt)
    return says_text or bool(wants_tokens and delta.token_ids)


def wants_logprobs(order: Order) -> bool:
    return order.samplings[0].logprobs is not None
