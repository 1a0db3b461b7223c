"""The cluster at one moment, for those who look.

One dictionary that the live page, `shoal top` and Prometheus' discovery are made of. Knows nothing of Ray, of
HTTP or of terminals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from actors.metrics import Sample
from cluster.member import CAUSES
from router.view import View

Snapshot = dict[str, Any]

DECISIONS = (
    *(("scale", "operator"), ("drain", "operator"), ("restart", "operator")),
    *(("scale", "autoscaler"), ("rebalance", "controller")),
)


class Unavailable(RuntimeError):  # noqa: N818 - named for what is, as the rest of the tree
    """Nobody can say how the cluster is, at the moment."""


class Looker(Protocol):
    """Where snapshots come from, and who does what an operator asks for."""

    def snapshot(self) -> Snapshot:
        """Raises Unavailable."""
        ...

    def kill(self, actor_id: str) -> bool: ...

    def trace(self, steps: int, seconds: float) -> dict[str, Any]:
        """The timeline of the next steps (cluster/trace.py)."""
        ...

    def order(self, order: str, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Of cluster/orders.py: what is `done`, or the `error`; raises Unavailable."""
        ...


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
    faults = Counter(dict.fromkeys(CAUSES, 0))
    for actor in snapshot["actors"]:
        for state in ("serves", "loads", "leaves", "given up"):
            states.setdefault((actor["kind"], state), 0)
        states[actor["kind"], actor["state"]] += 1
        faults.update(actor["faults"])
        yield Sample("shoal_deaths_total", actor["deaths"], (actor["actor_id"],))
        if actor["detection_s"] is not None:
            yield Sample("shoal_detection_seconds", actor["detection_s"], (actor["actor_id"],))
        if actor["recovery_s"] is not None:
            yield Sample("shoal_recovery_seconds", actor["recovery_s"], (actor["actor_id"],))
    for labels, count in states.items():
        yield Sample("shoal_actors", count, labels)
    for cause, count in faults.items():
        yield Sample("shoal_faults_total", count, (cause,))
    yield Sample("shoal_epoch", snapshot["epoch"])
    for stage in ("before", "after"):
        yield Sample("shoal_placement_imbalance", snapshot["balance"][stage], (stage,))
    yield Sample("shoal_slots_written_total", snapshot["balance"]["slots_written"])
    for decision, by in DECISIONS:
        yield Sample("shoal_decisions_total", _times(snapshot, decision, by), (decision, by))


def held_masks(view: View) -> dict[str, list[str]]:
    """By expert actor, a mask of the experts that it holds, for each layer, or one if all layers are alike.

    Hexadecimal; bit e is expert e.
    """
    masks = {}
    for actor, layers in zip(view.actors, view.held, strict=True):
        own = [f"{sum(1 << expert for expert in experts):x}" for experts in layers]
        masks[str(actor.actor_id)] = own[:1] if len(set(own)) == 1 else own
    return masks


def _times(snapshot: Snapshot, decision: str, by: str) -> int:
    return sum(times for *what, times in snapshot["decisions"] if what == [decision, by])
