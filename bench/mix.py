"""The open loop's requests: Poisson arrivals, mixed lengths, some beginnings shared.

The same seed gives the same requests at every rate, only closer together, so that systems and rates are
compared on one text. Knows nothing of who answers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from bench.timing import Prompt, make_prompts

PROMPT_TOKENS = (32, 96, 224)
NEW_TOKENS = (8, 16, 48)
SHARED_TOKENS = 128  # of a shared beginning: whole pages
NUM_SHARED = 2
SHARING = 0.4  # of the requests


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """at_s: after the start of the run."""

    prompt: Prompt
    new_tokens: int
    at_s: float


def make_mix(seed: int, *, rate: float, seconds: float, longest: int = 10_000) -> list[Request]:
    """What arrives in so many seconds, `longest` requests at most. Other systems may see the same."""
    random_ = random.Random(f"{seed}:mix")
    beginnings = make_prompts(f"{seed}:shared", count=NUM_SHARED, num_tokens=SHARED_TOKENS)
    requests: list[Request] = []
    at = random_.expovariate(1.0)
    while at / rate < seconds and len(requests) < longest:
        [own] = make_prompts(f"{seed}:{len(requests)}", count=1, num_tokens=random_.choice(PROMPT_TOKENS))
        beginning = random_.choice(beginnings) if random_.random() < SHARING else []
        requests.append(
            Request(prompt=[*beginning, *own], new_tokens=random_.choice(NEW_TOKENS), at_s=at / rate)
        )
        at += random_.expovariate(1.0)
    return requests


def with_prompts(requests: list[Request], prompts: list[Prompt]) -> list[Request]:
    """The same arrivals with other texts, again from the first where there are too few."""
    return [
        replace(request, prompt=prompts[number % len(prompts)]) for number, request in enumerate(requests)
    ]
