"""The token ids of prompts, and what they are in text.

Of texts, of ids that a client gives, of conversations. Knows nothing of what is to be made of them.

Errors: InvalidRequest (ingress/errors.py), also where this model's vocabulary lacks what a prompt needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ingress.encoding import encode_messages
from ingress.errors import InvalidRequest
from ingress.schema import Conversation
from ingress.specials import BOS, EOS, FIM_BEGIN, FIM_END, FIM_HOLE, Segment
from ingress.tokens import Tokenizer, TokenizerError
from ingress.values import PromptError


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """The tokenizer says whether a text by itself begins with the BOS token."""

    tokenizer: Tokenizer

    def of_segments(self, segments: Sequence[Segment], param: str = "messages") -> list[int]:
        try:
            return self.tokenizer.encode_prompt(segments)
        except TokenizerError as error:
            raise InvalidRequest(str(error), param=param) from None

    def of_text(self, text: str, *, add_bos: bool) -> list[int]:
        return self.of_segments([BOS, text] if add_bos else [text], param="prompt")

    def of_completion(self, prompt: str | list[int], suffix: str | None) -> list[int]:
        if not isinstance(prompt, str):
            return self.checked(prompt)
        if not suffix:
            return self.of_text(prompt, add_bos=self.tokenizer.adds_bos)
        # Fill in the middle, as DeepSeek's models were trained on it.
        segments: list[Segment] = [FIM_BEGIN, prompt, FIM_HOLE, suffix, FIM_END]
        return self.of_segments([BOS, *segments] if self.tokenizer.adds_bos else segments, param="suffix")

    def checked(self, ids: list[int], param: str = "prompt") -> list[int]:
        """`ids`, each in the vocabulary."""
        if ids and not 0 <= min(ids) <= max(ids) < self.tokenizer.vocab_size:
            raise InvalidRequest(f"a token id is not in 0 to {self.tokenizer.vocab_size - 1}", param=param)
        return ids

    def text_of(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, keep_special=True)

    def described(self) -> dict[str, Any]:
        """What a client needs to count tokens as we do. There is no chat template: the format is code."""
        return {
            "vocab_size": self.tokenizer.vocab_size,
            "add_bos_token": self.tokenizer.adds_bos,
            "bos_token": BOS.text,
            "bos_token_id": self.tokenizer.special_id(BOS.text),
            "eos_token": EOS.text,
            "eos_token_id": self.tokenizer.special_id(EOS.text),
            "chat_template": None,
        }


def segments_of(request: Conversation) -> list[Segment]:
    try:
        return encode_messages(
            request.prompt_messages,
            thinking=request.wants_thinking,
            tools=request.prompt_tools,
            response_format=None if request.response_format is None else request.response_format.as_sent,
        )
    except PromptError as error:
        raise InvalidRequest(str(error), param=error.param) from None
