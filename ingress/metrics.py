"""What an ingress tells Prometheus: requests, tokens and how long they took.

One `Watch` per choice, touched once per delivery. Belongs to the event loop; read by a scraper's thread.
Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from actors.metrics import Buckets, Sample
from ingress.tenants import Tenants

GAPS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
FIRST_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
QUEUE_S = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
WHOLE_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
CUT = "cut"  # left by its client, or failed
REFUSED = (429, 503)  # answers to whom comes at a bad time, not for what is asked
RECENT = 32  # choices that have ended, kept until somebody takes them


class Histogram:
    """Observations counted by bounds (ascending, each inclusive)."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def buckets(self) -> Buckets:
        return Buckets(self._bounds, tuple(self._counts), self._sum)


@dataclass(kw_only=True, slots=True)
class Stint:
    """What one attention actor did of a choice. first_s: None if no token came. work: None if it was lost."""

    actor_id: str
    start_s: float
    first_s: float | None = None
    work: dict[str, int | float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Took:
    """A choice that has ended, by the monotonic clock. parent: of its trace, as its client named it."""

    sequence_id: str = ""
    tenant: str = ""
    prompt_tokens: int
    generated_tokens: int
    finish: str
    start_s: float
    end_s: float
    stints: tuple[Stint, ...]
    parent: str | None = None

    @property
    def queue_s(self) -> float | None:
        """At the attention actors; None if none has told."""
        told = [float(stint.work["queue_s"]) for stint in self.stints if stint.work is not None]
        return sum(told) if told else None

    def journey(self) -> dict[str, Any]:
        """Who did what of it and how long that took, for an operator: no text, no ids of tokens."""
        first_s = next((stint.first_s for stint in self.stints if stint.first_s is not None), None)
        works = [stint.work for stint in self.stints if stint.work is not None]
        return {
            "id": self.sequence_id,
            "tenant": self.tenant,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "finish": self.finish,
            "actors": [stint.actor_id for stint in self.stints],
            "queue_s": self.queue_s,
            "first_token_s": None if first_s is None else first_s - self.start_s,
            "experts_s": sum(float(work["experts_s"]) for work in works) if works else None,
            "whole_s": self.end_s - self.start_s,
        }


class RequestMetrics:
    """Of one ingress since birth. on_end: told of every choice that has ended. recent: the newest of those.

    answers: by HTTP status.
    """

    def __init__(self) -> None:
        self.first_s, self.gap_s, self.whole_s = Histogram(FIRST_S), Histogram(GAPS_S), Histogram(WHOLE_S)
        self.queue_s, self.per_token_s = Histogram(QUEUE_S), Histogram(GAPS_S)
        self.prompt_tokens = self.generated_tokens = self.resumed = self.open = 0
        self.ended: Counter[str] = Counter()
        self.answers: Counter[int] = Counter()
        self.tenants = Tenants()
        self.recent: deque[Took] = deque(maxlen=RECENT)
        self.on_end: Callable[[Took], None] | None = None

    def watch(
        self, num_prompt: int, parent: str | None = None, *, sequence_id: str = "", tenant: str = ""
    ) -> Watch:
        """A choice begins. parent: W3C's traceparent, if its client sent one."""
        self.prompt_tokens += num_prompt
        self.open += 1
        self.tenants.of(tenant).prompt_tokens += num_prompt
        return Watch(self, num_prompt, parent, sequence_id, tenant)

    def answered(self, status: int, tenant: str | None) -> None:
        """A request was, with this HTTP status. tenant: of one that asked for something to be computed."""
        self.answers[status] += 1
        if tenant is not None:
            counts = self.tenants.of(tenant)
            counts.requests += 1
            counts.refused += status in REFUSED

    def take_recent(self) -> list[Took]:
        """Those that have ended since they were last taken, the newest RECENT at most."""
        taken = list(self.recent)
        self.recent.clear()
        return taken

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        yield Sample("shoal_prompt_tokens_total", self.prompt_tokens)
        yield Sample("shoal_generated_tokens_total", self.generated_tokens)
        yield Sample("shoal_open_sequences", self.open)
        yield Sample("shoal_resumed_total", self.resumed)
        for status, count in list(self.answers.items()):
            yield Sample("shoal_answers_total", count, (str(status),))
        for finish, count in list(self.ended.items()):
            yield Sample("shoal_requests_total", count, (finish,))
            if finish != CUT:
                yield Sample("vllm:request_success", count, (finish,))
        yield Sample("shoal_first_token_seconds", self.first_s.buckets)
        yield Sample("shoal_token_gap_seconds", self.gap_s.buckets)
        yield Sample("shoal_request_seconds", self.whole_s.buckets)
        yield Sample("shoal_queue_seconds", self.queue_s.buckets)
        yield Sample("shoal_token_seconds", self.per_token_s.buckets)
        yield from self.tenants.samples()


class Watch:
    """One choice from its start to its end."""

    def __init__(
        self, metrics: RequestMetrics, num_prompt: int, parent: str | None, sequence_id: str, tenant: str
    ) -> None:
        self._metrics = metrics
        self._parent, self._sequence_id, self._tenant = parent, sequence_id, tenant
        self._counts = metrics.tenants.of(tenant)
        self._num_prompt, self._num_generated = num_prompt, 0
        self._stints: list[Stint] = []
        self._start_s = self._last_s = time.monotonic()
        self._first_s: float | None = None
        self._stopped: str | None = None

    def sent(self, actor_id: str) -> None:
        """This attention actor has it from here on."""
        self._stints.append(Stint(actor_id=actor_id, start_s=time.monotonic()))

    def delivered(
        self, num_tokens: int, work: dict[str, int | float] | None = None, num_cached: int | None = None
    ) -> None:
        """So many tokens have come at once; work: with the last. num_cached: with the first."""
        if not num_tokens:
            return
        now_s = time.monotonic()
        if self._stints:
            stint = self._stints[-1]
            stint.first_s, stint.work = stint.first_s or now_s, work
        histogram = self._metrics.first_s if self._first_s is None else self._metrics.gap_s
        histogram.observe(now_s - self._last_s)
        self._metrics.generated_tokens += num_tokens
        self._counts.generated_tokens += num_tokens
        self._counts.cached_tokens += num_cached or 0
        self._num_generated += num_tokens
        self._last_s, self._first_s = now_s, self._first_s or now_s

    def stop(self, finish: str) -> None:
        """Its text ends it here, whatever the engine would still make: a stop string, a first call."""
        self._stopped = finish

    def end(self, finish: str | None) -> None:
        """None: by its text, or cut by its client or by a failure."""
        metrics, took = self._metrics, self._took(finish)
        metrics.open -= 1
        metrics.ended[took.finish] += 1
        metrics.whole_s.observe(took.end_s - took.start_s)
        if took.queue_s is not None:
            metrics.queue_s.observe(took.queue_s)
            self._counts.queue_s += took.queue_s
        if self._first_s is not None and self._num_generated > 1:
            metrics.per_token_s.observe((self._last_s - self._first_s) / (self._num_generated - 1))
        metrics.recent.append(took)
        if metrics.on_end is not None:
            metrics.on_end(took)

    def _took(self, finish: str | None) -> Took:
        return Took(
            sequence_id=self._sequence_id,
            tenant=self._tenant,
            prompt_tokens=self._num_prompt,
            generated_tokens=self._num_generated,
            finish=finish or self._stopped or CUT,
            start_s=self._start_s,
            end_s=time.monotonic(),
            stints=tuple(self._stints),
            parent=self._parent,
        )
