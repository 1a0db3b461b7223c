"""The cluster at one moment, for those who look.

One dictionary that the live page, `shoal top` and Prometheus' discovery are made of. Whoever does not answer
in time is left out of the numbers, never waited for. Knows nothing of HTTP or terminals.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import ray

from actors.metrics import Sample

CONTROLLER_S = 5.0
ANSWER_S = 0.5  # a look must not hang because an actor does
EVENTS_SHOWN = 200
SHOWN = (
    *("actor_id", "kind", "incarnation", "pid", "host", "metrics_port", "experts"),
    *("deaths", "recovery_s"),
)

Snapshot = dict[str, Any]


class Looker(Protocol):
    """Where snapshots come from, and the one thing that can be done from the page."""

    def snapshot(self) -> Snapshot: ...

    def kill(self, actor_id: str) -> bool: ...


def take(controller: Any, model: str, url: str) -> Snapshot:
    """Ask the controller and through it every actor; raises ray.exceptions.RayError if it is not there.

    `experts.pairs` [L][E] and the counters under `stats` are sums since birth: who looks twice has rates.
    """
    questions = (controller.status, controller.stats, controller.expert_pairs)
    status, asked, pairs = ray.get([ask.remote() for ask in questions], timeout=CONTROLLER_S)
    answers = _answered({**asked, **{("pairs", name): answer for name, answer in pairs.items()}})
    members = [{**_public(member), "stats": answers.get(member["actor_id"])} for member in status["members"]]
    return {
        "at_s": time.monotonic(),
        "model": model,
        "url": url,
        "epoch": status["epoch"],
        "ready": status["ready"],
        "actors": members,
        "ingresses": status["ingresses"],
        "experts": {
            "first_layer": status["first_layer"],
            "pairs": _summed([answers[key] for key in answers if isinstance(key, tuple)]),
        },
        "events": [{"at_s": at_s, "text": text} for at_s, text in status["events"][-EVENTS_SHOWN:]],
    }


def targets(snapshot: Snapshot, own: str) -> list[dict[str, Any]]:
    """Prometheus' HTTP discovery: where every process tells its metrics. own: this listener's host:port."""
    found = [{"targets": [own], "labels": {"role": "controller", "actor": "controller"}}]
    for actor in snapshot["actors"]:
        if actor["metrics_port"] is not None:
            address = f"{actor['host']}:{actor['metrics_port']}"
            found.append(
                {"targets": [address], "labels": {"role": actor["kind"], "actor": actor["actor_id"]}}
            )
    for identity, host, port in snapshot["ingresses"]:
        found.append({"targets": [f"{host}:{port}"], "labels": {"role": "ingress", "actor": identity}})
    return found


def controller_samples(snapshot: Snapshot) -> Iterator[Sample]:
    """The metrics of the cluster as a whole."""
    states: dict[tuple[str, str], int] = {}
    for actor in snapshot["actors"]:
        for state in ("serves", "loads", "given up"):
            states.setdefault((actor["kind"], state), 0)
        states[actor["kind"], actor["state"]] += 1
        yield Sample("shoal_deaths_total", actor["deaths"], (actor["actor_id"],))
        if actor["recovery_s"] is not None:
            yield Sample("shoal_recovery_seconds", actor["recovery_s"], (actor["actor_id"],))
    for labels, count in states.items():
        yield Sample("shoal_actors", count, labels)
    yield Sample("shoal_epoch", snapshot["epoch"])


def _public(member: Mapping[str, Any]) -> dict[str, Any]:
    state = "given up" if member["gave_up"] else "serves" if member["active"] else "loads"
    return {"state": state, **{name: member[name] for name in SHOWN}}


def _answered(asked: Mapping[Any, Any]) -> dict[Any, Any]:
    """The answers that came within ANSWER_S."""
    references = list(asked.values())
    done, _ = ray.wait(references, num_returns=len(references), timeout=ANSWER_S) if references else ([], [])
    answers = {}
    for name, reference in asked.items():
        if reference in done:
            try:
                answers[name] = ray.get(reference)
            except ray.exceptions.RayError:
                continue  # it died: the events say so
    return answers


def _summed(matrices: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    """Of every attention actor's [L][E]."""
    return [[sum(cells) for cells in zip(*layers, strict=True)] for layers in zip(*matrices, strict=True)]
