"""Log probabilities in OpenAI's two shapes.

Knows nothing of how they were computed. JSON has no infinity: LOWEST stands for it, as in other servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ingress.output import Delta, PromptLogprobs, Top
from ingress.tokens import Tokenizer

LOWEST = -9999.0

Json = dict[str, Any]


def chat_logprobs(delta: Delta, tokenizer: Tokenizer) -> Json:
    """One entry per token, with the likeliest at that place."""
    tops = delta.top or ((),) * len(delta.token_ids)
    content = [
        {
            **_entry(tokenizer, token_id, logprob),
            "top_logprobs": [_entry(tokenizer, other, value) for other, value in top],
        }
        for token_id, logprob, top in zip(delta.token_ids, delta.logprobs, tops, strict=True)
    ]
    return {"content": content, "refusal": None}


class TextLogprobs:
    """The four parallel lists of one choice, piece by piece.

    text_offset: how many characters of the text come before the token; what is not shown takes none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._num_chars = 0

    def prompt(self, token_ids: Sequence[int], scores: PromptLogprobs, *, keep_special: bool) -> Json:
        """Nothing is known of its first token. keep_special: the echo spells special tokens out."""
        top = scores.top or ((),) * len(scores.logprobs)
        self._detokenizer = self._tokenizer.detokenizer(keep_special=keep_special)
        fields = self._fields(token_ids, (None, *scores.logprobs), (None, *top))
        self._num_chars += len(self._detokenizer.flush())
        self._detokenizer = self._tokenizer.detokenizer()
        return fields

    def delta(self, delta: Delta) -> Json:
        return self._fields(delta.token_ids, delta.logprobs, delta.top or ((),) * len(delta.token_ids))

    def _fields(
        self, token_ids: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[Top | None]
    ) -> Json:
        scored = zip(token_ids, logprobs, tops, strict=True)
        return {
            "tokens": [_text(self._tokenizer, token_id) for token_id in token_ids],
            "token_logprobs": [None if value is None else _finite(value) for value in logprobs],
            "top_logprobs": [self._top(*one) for one in scored],
            "text_offset": [self._offset(token_id) for token_id in token_ids],
        }

    def _top(self, token_id: int, logprob: float | None, top: Top | None) -> dict[str, float] | None:
        """By text, the token itself always among them; of two tokens with one text the likelier counts."""
        if logprob is None or top is None:
            return None
        likeliest = {_text(self._tokenizer, other): _finite(value) for other, value in reversed(top)}
        own = _text(self._tokenizer, token_id)
        return {**likeliest, own: max(_finite(logprob), likeliest.get(own, LOWEST))}

    def _offset(self, token_id: int) -> int:
        offset = self._num_chars
        self._num_chars += len(self._detokenizer.push([token_id]))
        return offset


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> Json:
    return {
        "token": _text(tokenizer, token_id),
        "logprob": _finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.decode([token_id], keep_special=True)


def _finite(logprob: float) -> float:
    return logprob if LOWEST < logprob < float("inf") else LOWEST  # NaN is neither
