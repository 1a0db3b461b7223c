"""Asks a live cluster for a snapshot.

Whoever does not answer in time is left out of the numbers, never waited for. Knows nothing of who looks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray

from cluster.snapshot import Snapshot, held_masks
from router.view import View

CONTROLLER_S = 5.0
ANSWER_S = 0.5  # a look must not hang because an actor does
EVENTS_SHOWN = 200
SHOWN = (
    *("actor_id", "kind", "incarnation", "pid", "host", "metrics_port", "experts"),
    *("deaths", "faults", "recovery_s", "detection_s"),
)


def take(controller: Any, model: str, url: str) -> Snapshot:
    """Ask the controller and through it every actor; raises ray.exceptions.RayError if it is not there.

    An actor's `expert_pairs` [L][E] and the counters under `stats` are sums since its birth; None if it did
    not answer. Who looks twice has rates (cluster/rates.py).
    """
    questions = (controller.status, controller.stats, controller.expert_pairs, controller.view)
    status, asked, pairs, view = ray.get([ask.remote() for ask in questions], timeout=CONTROLLER_S)
    answers = _answered({**asked, **{("pairs", name): answer for name, answer in pairs.items()}})
    members = [
        {
            **_public(member),
            "stats": answers.get(member["actor_id"]),
            "expert_pairs": answers.get(("pairs", member["actor_id"])),
        }
        for member in status["members"]
    ]
    return {
        "at_s": time.monotonic(),
        "model": model,
        "url": url,
        "epoch": status["epoch"],
        "ready": status["ready"],
        "settled": status["settled"],
        "balance": status["balance"],
        "decisions": status["decisions"],
        "actors": members,
        "ingresses": status["ingresses"],
        "experts": {"first_layer": status["first_layer"], "held": held_masks(View.from_bytes(view))},
        "requests": status["requests"],
        "events": [{"at_s": at_s, "text": text} for at_s, text in status["events"][-EVENTS_SHOWN:]],
    }


def _public(member: Mapping[str, Any]) -> dict[str, Any]:
    serving = "leaves" if member["leaving"] else "serves"
    state = "given up" if member["gave_up"] else serving if member["active"] else "loads"
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
