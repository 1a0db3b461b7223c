"""Why a sequence cannot be served here.

The ingress checks more; this keeps what slipped through from ending everyone's step. Knows nothing of what is
running.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from model.sampling import Sampling


def objection(
    prompt_ids: Sequence[int],
    emitted_ids: Sequence[int],
    sampling: Sampling,
    *,
    vocab_size: int,
    context_tokens: int,
) -> str | None:
    """The first reason, or None."""
    if not prompt_ids:
        return "the prompt is empty"
    tokens = [*prompt_ids, *emitted_ids]
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        return f"a token id is outside the vocabulary of {vocab_size}"
    if len(tokens) >= context_tokens:
        return f"{len(tokens)} tokens do not fit the context of {context_tokens}"
    return _objection_to(sampling, vocab_size)


def _objection_to(sampling: Sampling, vocab_size: int) -> str | None:
    """Why nobody can sample like this, or None."""
    temperature, repetition = sampling.temperature, sampling.repetition_penalty
    others = (sampling.top_p, sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty)
    if not all(math.isfinite(number) for number in (temperature, repetition, *others)):
        return "a sampling parameter is not a finite number"
    if temperature < 0.0 or repetition <= 0.0:
        return f"temperature is {temperature}, repetition_penalty {repetition}: at least 0, above 0"
    if not -(2**63) <= sampling.seed < 2**63:
        return f"seed is {sampling.seed}: must fit 64 bits"
    if any(not 0 <= token_id < vocab_size for token_id in sampling.stop_token_ids):
        return f"a stop token id is outside the vocabulary of {vocab_size}"
    if any(not 0 <= token_id < vocab_size for token_id, _ in sampling.logit_bias):
        return f"a biased token id is outside the vocabulary of {vocab_size}"
    if sampling.grammar and sampling.ignore_eos:
        return "a text with a grammar cannot ignore its end"
    if not all(math.isfinite(bias) for _, bias in sampling.logit_bias):
        return "a logit bias is not a finite number"
    return None
