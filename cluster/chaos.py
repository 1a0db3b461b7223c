"""Faults under load, and what clients saw of them.

Brings a cluster up, keeps streams under way, injects one fault after another and checks every event of every
stream against the answers of the fault-free run. Knows nothing of terminals: outcomes go to a callback.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import ray

from cluster.deeds import DISK, BrokenPromise, Victims, are_replaced, kill_any, living
from cluster.embedded import embedded_directory
from cluster.faults import Fault
from cluster.footprint import Footprint, grown
from cluster.history import (
    CUT,
    SERVED,
    Breach,
    StreamEvent,
    by_request,
    check,
    differing,
    longest_gap_s,
    slowdown,
    tokens_of,
)
from cluster.launch import launch, shut_down
from cluster.preflight import examine
from cluster.running import Cluster
from cluster.small_disk import small_disk
from cluster.spec import ShoalSpec
from cluster.streams import Question, Streams, ask, make_questions

logger = logging.getLogger(__name__)

WARM_TOKENS = 8  # of each stream, before a fault comes
AFTER_S = 2.0  # of load after all is replaced
RECOVERY_S = 300.0  # a rolling restart of everything under load takes 70 to 130 s on two cores
BASELINE_S = 30.0
POLL_S = 0.05
PAUSE_S = (0.2, 1.5)  # between kills in a row
QUESTIONS = 9
MAX_TOKENS = 48
KILLS = "kills"

Keep = Callable[[Sequence[StreamEvent]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The cluster that a set of faults meets. port: of HTTP."""

    model: str | None
    is_replicated: bool
    port: int

    @property
    def spec(self) -> ShoalSpec:
        count = 2 if self.is_replicated else 1
        return ShoalSpec.from_sources(
            None,
            {
                "model": self.model,
                "attention": count,
                "experts": 2,
                "replicas_per_expert": count,
                "ingress": count,
                "port": self.port,
            },
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Of one fault. Times from the fault on, None if it was not seen; cut: answers that ended with a process.

    slowdown: the longest request after the fault by the p99 of those before, if enough were compared.
    handed_pages: that went from one attention actor to another. again_tokens: that were computed again, by
    those that live in the end. left_behind: what is more than before when the load has ended.
    """

    fault: str
    about: str
    detected_s: float | None
    recovered_s: float | None
    longest_gap_s: float
    slowdown: float | None
    handed_pages: int
    again_tokens: int
    requests: int
    tokens: int
    failed: int
    cut: int
    differing: int
    breaches: tuple[Breach, ...]
    left_behind: tuple[str, ...]

    @property
    def is_as_promised(self) -> bool:
        return not (self.failed or self.differing or self.breaches or self.left_behind) and (
            self.recovered_s is not None
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is asked of the cluster while faults come. expected: by question, the fault-free answer."""

    questions: Sequence[Question]
    expected: Mapping[str, Sequence[int]]
    streams: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A cluster that serves, and what."""

    cluster: Cluster
    model: str
    vocab_size: int


@contextmanager
def running(shape: Shape) -> Iterator[Served]:
    """Up for the block; of the embedded model, from a copy that faults may damage."""
    with TemporaryDirectory(prefix="shoal-") as scratch, small_disk(Path(scratch) / DISK):
        model = shape.model
        if model is None:
            model = str(copytree(embedded_directory(), Path(scratch) / "embedded"))
        spec = replace(shape, model=model).spec
        preflight = examine(spec)
        cluster = launch(spec, preflight)
        try:
            yield Served(cluster=cluster, model=preflight.model_name, vocab_size=preflight.config.vocab_size)
        finally:
            shut_down(cluster)


def make_load(served: Served, streams: int, seed: int) -> Load:
    """Ask each question once, alone and before any fault."""
    questions = make_questions(QUESTIONS, seed=seed, max_tokens=MAX_TOKENS, vocab_size=served.vocab_size)
    expected = {q.name: tokens_of(ask(served.cluster.url, served.model, q, q.name)) for q in questions}
    short = [name for name, tokens in expected.items() if len(tokens) != MAX_TOKENS]
    if short:
        raise ValueError(
            f"the fault-free answers to {', '.join(short)} are not whole: nothing to compare with"
        )
    return Load(questions=questions, expected=expected, streams=streams)


def try_fault(served: Served, fault: Fault, load: Load, keep: Keep) -> Outcome:
    """One fault under load. keep: is given the history."""
    return _try(served, fault, load, lambda: _hit(served.cluster, fault, random.Random(0)), keep)


def try_kills(
    served: Served, load: Load, count: int, seed: int, on_kill: Callable[[int, str], None], keep: Keep
) -> Outcome:
    """Kills in a row, each when the one before is replaced. The times are those of the slowest."""
    fault = Fault(
        name=KILLS, about=f"{count} SIGKILLs in a row, seed {seed}", is_replicated=True, inject=kill_any
    )

    def hit() -> _Times:
        generator, times = random.Random(seed), []
        for number in range(count):
            times.append(_hit(served.cluster, fault, generator))
            on_kill(number + 1, ", ".join(times[-1].victims))
            time.sleep(generator.uniform(*PAUSE_S))
        return _Times(
            victims={},
            detected_s=_slowest([one.detected_s for one in times]),
            recovered_s=_slowest([one.recovered_s for one in times]),
        )

    return _try(served, fault, load, hit, keep)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Times:
    victims: Victims
    detected_s: float | None
    recovered_s: float | None


def _try(served: Served, fault: Fault, load: Load, hit: Callable[[], _Times], keep: Keep) -> Outcome:
    cluster = served.cluster
    _await(lambda: cluster.status()["standbys"] >= cluster.spec.standbys, RECOVERY_S)
    before = Footprint.of(cluster)
    with Streams(cluster.url, served.model, load.questions, load.streams) as streams:
        _await(lambda: streams.num_tokens >= WARM_TOKENS * load.streams, RECOVERY_S)
        _await(lambda: streams.num_ended >= fault.requests_before, RECOVERY_S)
        at_s = time.monotonic()
        times = hit()
        time.sleep(AFTER_S)
    keep(streams.history)
    expected = {request: load.expected[q.name] for request, q in streams.asked.items()}
    return _outcome(fault, streams.history, expected, at_s, times, _aftermath(cluster, before))


def _hit(cluster: Cluster, fault: Fault, generator: random.Random) -> _Times:
    """Inject the fault and wait until everyone who was hit is replaced."""
    _await(lambda: bool(living(cluster)), RECOVERY_S)  # the controller may be slow to answer
    before = living(cluster)
    at_s = time.monotonic()
    try:
        victims = fault.inject(cluster, before, generator)
    except BrokenPromise as error:
        logger.error("%s: %s", fault.name, error)
        return _Times(victims={}, detected_s=None, recovered_s=None)
    if not victims:
        return _Times(victims={}, detected_s=None, recovered_s=0.0)
    is_over = fault.is_over or are_replaced
    is_well = _await(lambda: is_over(cluster, before, victims), RECOVERY_S)
    recovered_s = time.monotonic() - at_s if is_well else None
    events = cluster.events_after(at_s)
    detected_s = min((when_s - at_s for when_s, _ in events), default=None)
    return _Times(victims=victims, detected_s=detected_s, recovered_s=recovered_s)


def _outcome(
    fault: Fault,
    history: Sequence[StreamEvent],
    expected: Mapping[str, Sequence[int]],
    at_s: float,
    times: _Times,
    aftermath: _Aftermath,
) -> Outcome:
    requests = by_request(history)
    cut = (
        {e.request for e in history if e.finish is not None and e.finish.startswith(CUT)}
        if fault.may_cut
        else set()
    )
    breaches = [breach for breach in check(history, expected) if breach.request not in cut]
    return Outcome(
        fault=fault.name,
        about=fault.about,
        detected_s=times.detected_s,
        recovered_s=times.recovered_s,
        longest_gap_s=longest_gap_s(history, at_s),
        slowdown=slowdown(history, at_s) if fault.requests_before else None,
        handed_pages=aftermath.handed_pages,
        again_tokens=aftermath.again_tokens,
        requests=len(requests),
        tokens=sum(len(tokens_of(events)) for events in requests.values()),
        failed=len({breach.request for breach in breaches if breach.rule in ("failed", "end")}),
        cut=len(cut),
        differing=sum(
            differing(tokens_of(events), expected[request], is_whole=events[-1].finish in SERVED)
            for request, events in requests.items()
        ),
        breaches=tuple(breaches),
        left_behind=aftermath.left_behind,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Aftermath:
    """As in Outcome."""

    handed_pages: int
    again_tokens: int
    left_behind: tuple[str, ...]


def _aftermath(cluster: Cluster, before: Footprint) -> _Aftermath:
    """Once nothing is more than before, or BASELINE_S after the load."""
    after, found = before, ["nobody can tell"]

    def is_clean() -> bool:
        nonlocal after, found
        after = Footprint.of(cluster)
        found = after.beyond(before)
        return not found

    _await(is_clean, BASELINE_S)
    return _Aftermath(
        handed_pages=grown(after.handed_pages, before.handed_pages),
        again_tokens=grown(after.again_tokens, before.again_tokens),
        left_behind=tuple(found),
    )


def _await(is_so: Callable[[], bool], limit_s: float) -> bool:
    """Whether it became so in time; a controller that does not answer in time is asked again."""
    deadline_s = time.monotonic() + limit_s
    while not _or_false(is_so):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def _or_false(is_so: Callable[[], bool]) -> bool:
    try:
        return is_so()
    except ray.exceptions.RayError:
        return False


def _slowest(times_s: Sequence[float | None]) -> float | None:
    """None if one of them never came."""
    seen = [one for one in times_s if one is not None]
    return max(seen) if len(seen) == len(times_s) and seen else None
