"""What the engine is to draw with, of a request's options.

One Sampling per choice. Knows nothing of prompts beyond their number and of what a grammar says.
"""

from __future__ import annotations

import secrets

from actors.messages import Sampling
from ingress.options import Options

SEED_MASK = 2**63 - 1


def sampling_of(
    request: Options,
    *,
    choice: int,
    max_tokens: int,
    num_logprobs: int | None,
    of_prompt: bool,
    grammar: str,
    grammar_after: int | None,
) -> Sampling:
    """choice: of its prompt, from 0. grammar_after: the token that the grammar begins behind."""
    return Sampling(
        max_tokens=max_tokens,
        seed=_seed(request.seed, choice),
        temperature=_or(request.temperature, 1.0),
        top_p=_or(request.top_p, 1.0),
        top_k=max(0, request.top_k or 0),  # -1 is another way to say off
        min_p=_or(request.min_p, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        min_tokens=request.min_tokens or 0,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logit_bias=tuple(sorted((request.logit_bias or {}).items())),
        logprobs=num_logprobs,
        of_prompt=of_prompt,
        grammar=grammar,
        grammar_after=grammar_after,
    )


def _seed(given: int | None, choice: int) -> int:
    """Choice 0, 1, ... of a prompt: the same for a given seed, whatever other prompts came with it."""
    return secrets.randbits(63) if given is None else (given + choice) & SEED_MASK


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)
