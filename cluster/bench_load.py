"""A load of requests, and what a client saw of each.

So many at once, or as many a second at random moments (Poisson). Every request counts, failed ones too. Knows
nothing of terminals and pages.

Errors: ApiError (cluster/api_client.py) where the server cannot be asked at all.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import numpy as np

from cluster.api_client import DONE, Api, ApiError, Place, check, chunk_of, events_in

FIRST_ORDINARY_ID = 16  # below are special tokens in our own vocabularies; elsewhere it does no harm
FEW_TOKENS = 256  # of a vocabulary that is not told
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """concurrency: requests at once. rate: requests a second instead, which do not wait for answers."""

    requests: int
    concurrency: int
    rate: float | None
    prompt_tokens: int
    max_tokens: int
    seed: int

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Random tokens; the same seed gives the same."""
        generator = random.Random(self.seed)
        ids = range(FIRST_ORDINARY_ID, max(vocab_size, FIRST_ORDINARY_ID + 1))
        return [generator.choices(ids, k=self.prompt_tokens) for _ in range(self.requests)]

    def starts_s(self) -> list[float]:
        """When each is sent, from the beginning; all at once where only concurrency bounds them."""
        if self.rate is None:
            return [0.0] * self.requests
        generator, at_s, starts = random.Random(self.seed), 0.0, []
        for _ in range(self.requests):
            starts.append(at_s)
            at_s += generator.expovariate(self.rate)
        return starts


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request. arrivals_s: of its parts, from when it was sent; fault: why it failed."""

    arrivals_s: tuple[float, ...] = ()
    tokens: int = 0
    whole_s: float = 0.0
    fault: str | None = None

    @property
    def ttft_s(self) -> float:
        return self.arrivals_s[0]

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None if there is none."""
        after = self.tokens - 1
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / after if after > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What was asked for, and what came of it."""

    url: str
    model: str
    load: Load
    seconds: float
    samples: tuple[Sample, ...]

    @property
    def answered(self) -> list[Sample]:
        return [one for one in self.samples if one.fault is None]

    def times_ms(self) -> dict[str, list[float]]:
        """By measure, of every answered request, ascending."""
        told = self.answered
        times = {
            "TTFT": [one.ttft_s for one in told],
            "TPOT": [one.tpot_s for one in told if one.tpot_s is not None],
            "E2E": [one.whole_s for one in told],
        }
        return {name: sorted(1e3 * value for value in values) for name, values in times.items()}

    def figures(self) -> dict[str, Any]:
        """For programs: percentiles in ms, rates per second, failures by their words."""
        faults = [one.fault for one in self.samples if one.fault is not None]
        tokens = sum(one.tokens for one in self.answered)
        return {
            "url": self.url,
            "model": self.model,
            "load": asdict(self.load),
            "seconds": round(self.seconds, 3),
            "requests": len(self.samples),
            "failed": {text: faults.count(text) for text in sorted(set(faults))},
            "requests_per_s": round(len(self.answered) / self.seconds, 3),
            "tokens_per_s": round(tokens / self.seconds, 2),
            "ms": {name: percentiles(values) for name, values in self.times_ms().items()},
        }


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """None where there is nothing to tell of."""
    if not values:
        return {f"p{p}": None for p in PERCENTILES}
    found = np.percentile(values, PERCENTILES)
    return {f"p{p}": round(float(value), 2) for p, value in zip(PERCENTILES, found, strict=True)}


def run(place: Place, load: Load, on_answer: Callable[[], None] = lambda: None) -> Result:
    """Send it all; calls on_answer after each request. Raises ApiError."""
    with Api(place) as api:
        model, vocab_size = api.model(), api.vocab_size() or FIRST_ORDINARY_ID + FEW_TOKENS
    began_s = time.perf_counter()
    samples = asyncio.run(_send(place, model, load, load.prompts(vocab_size), on_answer))
    return Result(
        url=place.url,
        model=model,
        load=load,
        seconds=time.perf_counter() - began_s,
        samples=tuple(samples),
    )


async def _send(
    place: Place, model: str, load: Load, prompts: Sequence[list[int]], on_answer: Callable[[], None]
) -> list[Sample]:
    most = load.concurrency if load.rate is None else load.requests
    gate = asyncio.Semaphore(most)
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    began_s = time.perf_counter()

    async with httpx.AsyncClient(**place.options(), limits=limits) as http:

        async def one(prompt: list[int], start_s: float) -> Sample:
            await asyncio.sleep(max(0.0, began_s + start_s - time.perf_counter()))
            async with gate:
                sample = await _ask(http, _body(model, load, prompt))
            on_answer()
            return sample

        async with asyncio.TaskGroup() as group:
            starts = load.starts_s()
            tasks = [group.create_task(one(*each)) for each in zip(prompts, starts, strict=True)]
    return [task.result() for task in tasks]


def _body(model: str, load: Load, prompt: list[int]) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _ask(http: httpx.AsyncClient, body: dict[str, Any]) -> Sample:
    sent_s, arrivals_s, tokens = time.perf_counter(), [], 0
    try:
        async with http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                check(response.status_code, (await response.aread()).decode(errors="replace"))
            async for chunk in _chunks(response):
                if chunk.get("choices"):
                    arrivals_s.append(time.perf_counter() - sent_s)
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    except (httpx.HTTPError, ApiError, ValueError) as error:
        return Sample(fault=str(error) or type(error).__name__)
    if not arrivals_s:
        return Sample(fault="the answer holds no token")
    return Sample(arrivals_s=tuple(arrivals_s), tokens=tokens, whole_s=time.perf_counter() - sent_s)


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    buffer = bytearray()
    async for part in response.aiter_raw():
        buffer += part
        for data in events_in(buffer):
            if data != DONE:
                yield chunk_of(data)
