"""What one API key may still ask for: requests, tokens, sequences.

Buckets that fill steadily, a minute's worth at most. Pure: the clock is given. Knows nothing of HTTP but the
names of the headers.

A request counts when its key is recognised, whatever becomes of it. Its prompt counts when it is let in, each
token when it is made; the balance of tokens may go below zero, and then whatever comes next waits. What
asks for more than a minute's worth passes when the bucket is full, or it never would.

Errors: RateLimited (ingress/errors.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ingress.errors import RateLimited
from ingress.keys import ApiKey

MINUTE_S = 60.0
SEQUENCE_RETRY_S = 1.0  # nobody knows when one of the sequences under way ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """Per minute, and at once; None: no such limit."""

    requests: int | None = None
    tokens: int | None = None
    sequences: int | None = None

    @staticmethod
    def of(key: ApiKey, replicas: int) -> Quota:
        """The share of one of `replicas` ingresses, which do not talk to each other."""

        def share(limit: int | None) -> int | None:
            return None if limit is None else math.ceil(limit / replicas)

        return Quota(
            requests=share(key.requests_per_minute),
            tokens=share(key.tokens_per_minute),
            sequences=share(key.max_sequences),
        )


class Bucket:
    """Full at first."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._left, self._at_s = float(per_minute), now_s

    def left(self, now_s: float) -> float:
        """Below zero: owed."""
        filled = (now_s - self._at_s) * self.per_minute / MINUTE_S
        self._left, self._at_s = min(float(self.per_minute), self._left + filled), now_s
        return self._left

    def take(self, amount: float, now_s: float) -> None:
        self._left = self.left(now_s) - amount

    def wait_s(self, amount: float, now_s: float) -> float:
        """Until `amount` may be taken: 0 if it may be now."""
        missing = min(amount, self.per_minute) - self.left(now_s)
        return max(0.0, missing * MINUTE_S / self.per_minute)


class Meter:
    """Of one key."""

    def __init__(self, name: str, quota: Quota, clock: Callable[[], float]) -> None:
        self._name, self._quota, self._clock = name, quota, clock
        now_s = clock()
        self._requests = None if quota.requests is None else Bucket(quota.requests, now_s)
        self._tokens = None if quota.tokens is None else Bucket(quota.tokens, now_s)
        self._sequences = 0

    def count_request(self) -> None:
        """Raises RateLimited."""
        if self._requests is not None:
            now_s = self._clock()
            self._check(self._requests, 1, "requests", now_s)
            self._requests.take(1, now_s)

    def admit(self, num_prompt: int, num_sequences: int) -> Grant:
        """Raises RateLimited, and then has counted nothing."""
        most, now_s = self._quota.sequences, self._clock()
        if most is not None and self._sequences and self._sequences + num_sequences > most:
            raise RateLimited(
                f"the key of {self._name} has {self._sequences} sequences under way, at most {most} at once",
                retry_after_s=SEQUENCE_RETRY_S,
            )
        if self._tokens is not None:
            self._check(self._tokens, num_prompt, "tokens", now_s)
            self._tokens.take(num_prompt, now_s)
        self._sequences += num_sequences
        return Grant(self, num_sequences)

    def spend(self, num_tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.take(num_tokens, self._clock())

    def release(self, num_sequences: int) -> None:
        self._sequences -= num_sequences

    def headers(self) -> dict[str, str]:
        """As OpenAI names them; reset: until the bucket is full again."""
        now_s, told = self._clock(), {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                told[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                told[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.left(now_s))))
                told[f"x-ratelimit-reset-{what}"] = f"{bucket.wait_s(bucket.per_minute, now_s):.3f}s"
        return told

    def _check(self, bucket: Bucket, amount: int, what: str, now_s: float) -> None:
        wait_s = bucket.wait_s(amount, now_s)
        if wait_s > 0:
            raise RateLimited(
                f"the key of {self._name} has used its {bucket.per_minute} {what} per minute",
                retry_after_s=wait_s,
            )


class Grant:
    """What was let in, until it ends; without a meter, nobody counts."""

    def __init__(self, meter: Meter | None = None, num_sequences: int = 0) -> None:
        self._meter, self._num_sequences = meter, num_sequences

    def spend(self, num_tokens: int) -> None:
        """So many tokens were made."""
        if self._meter is not None:
            self._meter.spend(num_tokens)

    def end(self) -> None:
        """Make place for others; once, however often it is said."""
        if self._meter is not None:
            self._meter.release(self._num_sequences)
        self._num_sequences = 0
