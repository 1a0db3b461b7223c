"""What a client saw, and the figures made of it.

Answers of any system, timed the same way. Knows nothing of how they were fetched.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FIRST_BYTE_ID = 16  # of the byte tokenizer: bytes are tokens 16 to 271, what is below is special
NUM_BYTES = 256

Prompt = list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One request. sent_s and arrivals_s are of one clock; one arrival per token."""

    token_ids: tuple[int, ...]
    sent_s: float
    arrivals_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.token_ids or len(self.token_ids) != len(self.arrivals_s):
            raise ValueError(f"{len(self.token_ids)} tokens with {len(self.arrivals_s)} arrival times")

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.arrivals_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None if there is none."""
        after = len(self.arrivals_s) - 1
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / after if after else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One system at one concurrency, once. foreign_cores: CPU that other processes took meanwhile."""

    answers: tuple[Answer, ...]
    foreign_cores: float

    @property
    def tokens_per_s(self) -> float:
        """New tokens of all answers over the time from the first request to the last token."""
        start_s = min(answer.sent_s for answer in self.answers)
        end_s = max(answer.arrivals_s[-1] for answer in self.answers)
        return sum(len(answer.token_ids) for answer in self.answers) / (end_s - start_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Tokens/s: median, least and most of the rounds. Times: p50 and p99 over the requests of all rounds."""

    tokens_per_s: float
    least: float
    most: float
    rounds: tuple[float, ...]
    ttft_ms: tuple[float, float]
    tpot_ms: tuple[float, float]
    foreign_cores: tuple[float, ...]
    requests: int


def figures(rounds: Sequence[Round]) -> Figures:
    """Of all rounds of one system at one concurrency."""
    rates = [one.tokens_per_s for one in rounds]
    answers = [answer for one in rounds for answer in one.answers]
    return Figures(
        tokens_per_s=float(np.median(rates)),
        least=min(rates),
        most=max(rates),
        rounds=tuple(rates),
        ttft_ms=_p50_p99_ms(answer.ttft_s for answer in answers),
        tpot_ms=_p50_p99_ms(answer.tpot_s for answer in answers if answer.tpot_s is not None),
        foreign_cores=tuple(one.foreign_cores for one in rounds),
        requests=len(answers),
    )


def answers_of(told: Iterable[Mapping[str, Any]]) -> list[Answer]:
    """What another process told of its answers."""
    return [
        Answer(token_ids=tuple(one["token_ids"]), sent_s=one["sent_s"], arrivals_s=tuple(one["arrivals_s"]))
        for one in told
    ]


def make_prompts(seed: str, *, count: int, num_tokens: int) -> list[Prompt]:
    """Random bytes as token ids; the same seed gives the same prompts."""
    generator = random.Random(seed)
    return [[FIRST_BYTE_ID + generator.randrange(NUM_BYTES) for _ in range(num_tokens)] for _ in range(count)]


def common_prefix(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens agree before the first that does not."""
    agreed = 0
    for our, their in zip(ours, theirs, strict=False):
        if our != their:
            break
        agreed += 1
    return agreed


def _p50_p99_ms(seconds: Iterable[float]) -> tuple[float, float]:
    values = list(seconds)
    if not values:
        return (float("nan"), float("nan"))
    p50, p99 = np.percentile(values, [50, 99]) * 1e3
    return (float(p50), float(p99))
