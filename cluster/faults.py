"""Faults by name, and where each is done.

Knows nothing of how (cluster/deeds.py), nor of load.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.controller import CONTROLLER
from cluster.deeds import (
    INGRESS,
    PROXY,
    SERVE,
    Inject,
    Order,
    Victims,
    are_all_renewed,
    damage,
    fill_disk,
    hiccup,
    is_settled,
    nothing,
    obey,
    poison,
    reach,
    reach_while_telling,
    send,
    slow,
    spoil,
    starve,
)

if TYPE_CHECKING:
    from cluster.running import Cluster

TO_COMPARE = 16  # requests, of whose times the later ones are compared with the p99

IsOver = Callable[["Cluster", Victims, Victims], bool]  # who lived before, who was hit


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is done, and where.

    is_replicated: in a cluster of two attention actors, two ingress replicas and two copies of each expert.
    may_cut: connections of clients may end with the process that was hit. is_over: all is well again; none:
    when everyone who was hit is replaced. requests_before: so many must have ended before it comes.
    needs_copy: of the checkpoint, to be damaged, or what lies beside it. needs_root: to mount.
    """

    name: str
    about: str
    is_replicated: bool
    inject: Inject
    may_cut: bool = False
    is_over: IsOver | None = None
    requests_before: int = 0
    needs_copy: bool = False
    needs_root: bool = False


def _fault(
    name: str,
    about: str,
    inject: Inject,
    *,
    is_replicated: bool = True,
    may_cut: bool = False,
    needs_copy: bool = False,
    needs_root: bool = False,
) -> Fault:
    return Fault(
        name=name,
        about=about,
        is_replicated=is_replicated,
        inject=inject,
        may_cut=may_cut,
        needs_copy=needs_copy,
        needs_root=needs_root,
    )


def _ordered(
    name: str,
    about: str,
    *orders: Order,
    killing: str | None = None,
    reaching: tuple[str, str] | None = None,
    is_over: IsOver = is_settled,
) -> Fault:
    return Fault(
        name=name,
        about=about,
        is_replicated=True,
        inject=obey(*orders, killing=killing, reaching=reaching),
        is_over=is_over,
        requests_before=TO_COMPARE,
    )


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
FAULTS: Sequence[Fault] = (
    _fault("none", "no fault", nothing, is_replicated=False),
    _fault(
        "expert-kill-only", "SIGKILL of an expert, the only copy", send(KILL, "expert-0"), is_replicated=False
    ),
    _fault(
        "attention-kill-only",
        "SIGKILL of the only attention actor",
        send(KILL, "attention-0"),
        is_replicated=False,
    ),
    _fault(
        "expert-stop-only",
        "SIGSTOP of an expert for ever, the only copy",
        send(STOP, "expert-1"),
        is_replicated=False,
    ),
    _fault(
        "attention-stop-only",
        "SIGSTOP of the only attention actor for ever",
        send(STOP, "attention-0"),
        is_replicated=False,
    ),
    _fault(
        "shard-damaged-only",
        "SIGKILL of an expert, the only copy, while every shard is damaged; mended when it was refused",
        damage("expert-0", "cannot load"),
        is_replicated=False,
        needs_copy=True,
    ),
    _fault("none-2", "no fault", nothing),
    _fault("expert-kill", "SIGKILL of an expert with a replica", send(KILL, "expert-0")),
    _fault("experts-kill", "SIGKILL of both replicas", send(KILL, "expert-0", "expert-1")),
    _fault("attention-kill", "SIGKILL of one of two attention actors", send(KILL, "attention-0")),
    _fault(
        "expert-mid-dispatch",
        "an expert ends when it has rows and has not computed them",
        reach("expert-0", "rows-received"),
    ),
    _fault(
        "expert-mid-combine",
        "an expert ends between two of its answers",
        reach("expert-1", "answer-sent"),
    ),
    _fault(
        "attention-mid-dispatch",
        "an attention actor ends when the first expert has its rows, others not",
        reach("attention-0", "rows-half-sent"),
    ),
    _fault(
        "attention-mid-combine",
        "an attention actor ends when the first answers of a layer have come",
        reach("attention-1", "answer-came"),
    ),
    _fault(
        "attention-untold",
        "an attention actor ends with tokens drawn and told to nobody",
        reach("attention-0", "token-drawn"),
    ),
    _fault(
        "attention-half-told",
        "an attention actor ends with tokens told to one ingress, others not",
        reach("attention-1", "token-sent"),
    ),
    _fault("expert-hiccup", "SIGSTOP of an expert for 3 s", hiccup("expert-1")),
    _fault("expert-stop", "SIGSTOP of an expert for ever", send(STOP, "expert-0")),
    _fault("expert-slow", "an expert at a tenth of its speed for 5 s", slow("expert-0")),
    _fault("attention-hiccup", "SIGSTOP of an attention actor for 3 s", hiccup("attention-1")),
    _fault("attention-stop", "SIGSTOP of an attention actor for ever", send(STOP, "attention-0")),
    _fault("attention-slow", "an attention actor at a tenth of its speed for 5 s", slow("attention-0")),
    _fault("expert-memory", "an expert that gets no more memory, under long prompts", starve("expert-0")),
    _fault(
        "attention-memory",
        "an attention actor that gets no more memory, under long prompts",
        starve("attention-0"),
    ),
    _fault("controller-kill", "SIGKILL of the controller", send(KILL, CONTROLLER)),
    _fault(
        "controller-mid-view",
        "SIGKILL of an expert; the controller ends while it tells the new view",
        reach_while_telling("view-half-told", "expert-0"),
    ),
    _fault("expert-nan", "an expert answers NaN", spoil("expert-1")),
    _fault(
        "ingress-kill", "SIGKILL of one of two ingress replicas", send(KILL, f"{INGRESS}-0"), may_cut=True
    ),
    _fault("serve-kill", "SIGKILL of Ray Serve's controller", send(KILL, SERVE)),
    _fault("proxy-kill", "SIGKILL of Ray Serve's only proxy", send(KILL, PROXY), may_cut=True),
    _fault(
        "shard-damaged",
        "SIGKILL of an expert with a replica, which gives it its weights, as every shard is damaged",
        damage("expert-0", "serves"),
        needs_copy=True,
    ),
    _fault(
        "disk-full",
        "SIGKILL of an attention actor while Ray's disk is full, for 6 s",
        fill_disk("attention-0"),
        needs_copy=True,
        needs_root=True,
    ),
    _fault("poison", "a request that ends whoever computes it: fails, after two of them", poison),
    _ordered(
        "scale-experts", "2 to 4 expert actors and back", ("scale", {"experts": 4}), ("scale", {"experts": 2})
    ),
    _ordered(
        "scale-experts-kill",
        "the same, and a SIGKILL while experts move",
        *(("scale", {"experts": 4}), ("scale", {"experts": 2})),
        killing="expert-0",
    ),
    _ordered(
        "scale-experts-mid-move",
        "2 to 4 and back, and an expert actor ends when it has taken one expert of several",
        *(("scale", {"experts": 4}), ("scale", {"experts": 2})),
        reaching=("expert-0", "expert-taken"),
    ),
    _ordered(
        "scale-attention",
        "2 to 3 attention actors and back",
        ("scale", {"attention": 3}),
        ("scale", {"attention": 2}),
    ),
    _ordered(
        "drain",
        "an attention actor drained, another begun",
        ("drain", {"name": "attention-0"}),
        ("scale", {"attention": 2}),
    ),
    _ordered(
        "restart",
        "every actor, the controller and every ingress replica replaced, one after another",
        ("restart", {}),
        is_over=are_all_renewed,
    ),
)
BY_NAME = {fault.name: fault for fault in FAULTS}
