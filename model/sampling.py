"""How the next token is chosen, as numbers.

Knows nothing of logits; see model/sampler.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

FOREIGN = "// a client's own\n"  # before a grammar that we did not make


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen. Validated at the door (ingress/schema.py); trusted here.

    temperature 0 is greedy. top_k 0 and min_p 0 and top_p 1 are off. `seed` is always set: the ingress draws
    one where the client gave none, so that a sequence can be resumed elsewhere with the same noise.
    logit_bias: (token id, what is added to its logit), each id once. logprobs: None = not wanted, 0 = of the
    chosen token, n = and of the n likeliest; of_prompt: also of each token of the prompt but the first.
    grammar: what the text must match (model/grammar.py), empty for none; grammar_after: the token after which
    that begins, None: at once.
    """

    KIND: ClassVar[str] = "sampling"
    max_tokens: int
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    of_prompt: bool = False
    grammar: str = ""
    grammar_after: int | None = None

    @property
    def is_penalised(self) -> bool:
        """Whether the tokens so far matter to the next one beyond the model."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1.0
