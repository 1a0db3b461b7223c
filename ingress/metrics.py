"""What an ingress tells Prometheus: requests, tokens and how long they took.

One `Watch` per choice, touched once per delivery. Belongs to the event loop; read by a scraper's thread.
Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from actors.metrics import Buckets, Sample

GAPS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
FIRST_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
WHOLE_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
CUT = "cut"  # left by its client, or failed


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

    prompt_tokens: int
    generated_tokens: int
    finish: str
    start_s: float
    end_s: float
    stints: tuple[Stint, ...]
    parent: str | None = None


class RequestMetrics:
    """Of one ingress since birth. on_end: told of every choice that has ended."""

    def __init__(self) -> None:
        self.first_s, self.gap_s, self.whole_s = Histogram(FIRST_S), Histogram(GAPS_S), Histogram(WHOLE_S)
        self.prompt_tokens = self.generated_tokens = self.resumed = self.open = 0
        self.ended: Counter[str] = Counter()
        self.on_end: Callable[[Took], None] | None = None

    def watch(self, num_prompt: int, parent: str | None = None) -> Watch:
        """A choice begins. parent: W3C's traceparent, if its client sent one."""
        self.prompt_tokens += num_prompt
        self.open += 1
        return Watch(self, num_prompt, parent)

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        yield Sample("shoal_prompt_tokens_total", self.prompt_tokens)
        yield Sample("shoal_generated_tokens_total", self.generated_tokens)
        yield Sample("shoal_open_sequences", self.open)
        yield Sample("shoal_resumed_total", self.resumed)
        for finish, count in list(self.ended.items()):
            yield Sample("shoal_requests_total", count, (finish,))
        yield Sample("shoal_first_token_seconds", self.first_s.buckets)
        yield Sample("shoal_token_gap_seconds", self.gap_s.buckets)
        yield Sample("shoal_request_seconds", self.whole_s.buckets)


class Watch:
    """One choice from its start to its end."""

    def __init__(self, metrics: RequestMetrics, num_prompt: int, parent: str | None) -> None:
        self._metrics = metrics
        self._parent = parent
        self._num_prompt, self._num_generated = num_prompt, 0
        self._stints: list[Stint] = []
        self._start_s = self._last_s = time.monotonic()
        self._has_spoken = False
        self._stopped: str | None = None

    def sent(self, actor_id: str) -> None:
        """This attention actor has it from here on."""
        self._stints.append(Stint(actor_id=actor_id, start_s=time.monotonic()))

    def delivered(self, num_tokens: int, work: dict[str, int | float] | None = None) -> None:
        """So many tokens have come at once; work: with the last."""
        if not num_tokens:
            return
        now_s = time.monotonic()
        if self._stints:
            stint = self._stints[-1]
            stint.first_s, stint.work = stint.first_s or now_s, work
        histogram = self._metrics.gap_s if self._has_spoken else self._metrics.first_s
        histogram.observe(now_s - self._last_s)
        self._metrics.generated_tokens += num_tokens
        self._num_generated += num_tokens
        self._last_s, self._has_spoken = now_s, True

    def stop(self, finish: str) -> None:
        """Its text ends it here, whatever the engine would still make: a stop string, a first call."""
        self._stopped = finish

    def end(self, finish: str | None) -> None:
        """None: by its text, or cut by its client or by a failure."""
        self._metrics.open -= 1
        self._metrics.ended[finish or self._stopped or CUT] += 1
        self._metrics.whole_s.observe(time.monotonic() - self._start_s)
        if self._metrics.on_end is not None:
            took = Took(
                prompt_tokens=self._num_prompt,
                generated_tokens=self._num_generated,
                finish=finish or CUT,
                start_s=self._start_s,
                end_s=time.monotonic(),
                stints=tuple(self._stints),
                parent=self._parent,
            )
            self._metrics.on_end(took)
