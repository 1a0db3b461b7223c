"""Faults between hosts, by name: cables that are cut, lose or delay, and hosts that vanish.

Done to a cluster of tests/ray/several_hosts.py in the shape of cluster/faults.py, so that cluster/chaos.py
tries them under load. Knows nothing of what clients see.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.faults import Fault, Victims, is_settled
from tests.ray.cable import CUT, FAIR, Weather
from tests.ray.several_hosts import Machine, SeveralHosts

BLINK_S = 0.5
WEATHER_S = 10.0

Deed = Callable[[SeveralHosts, Machine], None]


def cut(*, out: Weather = CUT, into: Weather = CUT) -> Deed:
    """out: of what the host sends; into: of what it is sent."""

    def deed(_: SeveralHosts, machine: Machine) -> None:
        assert machine.cable is not None
        machine.cable.set(out=out, into=into)

    return deed


def blink(_: SeveralHosts, machine: Machine) -> None:
    """Cut for less time than anybody needs to notice."""
    assert machine.cable is not None
    machine.cable.set(out=CUT, into=CUT)
    time.sleep(BLINK_S)
    machine.cable.set()


def bad(weather: Weather) -> Deed:
    """Both ways, for WEATHER_S."""

    def deed(_: SeveralHosts, machine: Machine) -> None:
        assert machine.cable is not None
        machine.cable.set(out=weather, into=weather)
        time.sleep(WEATHER_S)
        machine.cable.set()

    return deed


def die(cluster: SeveralHosts, machine: Machine) -> None:
    """Every process at once; the kernel lives on and tells all peers."""
    cluster.kill(machine)


def vanish(cluster: SeveralHosts, machine: Machine) -> None:
    """Power is gone: nobody is told anything."""
    cut()(cluster, machine)
    cluster.kill(machine)


def _fault(
    name: str, about: str, kind: str, deed: Deed, *, is_replaced: bool = True, is_fenced: bool = False
) -> Fault:
    """is_replaced: whether the host's actors must come up on another one.

    is_fenced: it is over only when what was cut off, and is back, has ended; else that is looked at later.
    """
    hit: list[Machine] = []

    def inject(cluster: Any, _: Victims, __: random.Random) -> Victims:
        hit[:] = [_host_of(cluster, kind)]
        before = _on(cluster, hit[0])
        deed(cluster, hit[0])
        return before

    def is_over(cluster: Any, _: Victims, victims: Victims) -> bool:
        if not is_replaced:
            return is_settled(cluster)
        if not _are_elsewhere(cluster, victims):
            return False
        if hit[0].is_up:  # what was cut off is back, and must find that it is not wanted any more
            hit[0].cable.set()
        return not is_fenced or not cluster.lives_on(hit[0])

    return Fault(name=name, about=about, is_replicated=True, inject=inject, is_over=is_over)


def _host_of(cluster: SeveralHosts, kind: str) -> Machine:
    """One with an actor of that kind, and of no other if there is one."""
    kinds: dict[str, set[str]] = {}
    for actor in cluster.snapshot()["actors"]:
        kinds.setdefault(actor["host"], set()).add(actor["kind"])
    return cluster.at(min((len(found), host) for host, found in kinds.items() if kind in found)[1])


def _on(cluster: SeveralHosts, machine: Machine) -> Victims:
    """By actor on that host, its incarnation."""
    actors = cluster.snapshot()["actors"]
    return {actor["actor_id"]: actor["incarnation"] for actor in actors if actor["host"] == machine.address}


def _are_elsewhere(cluster: SeveralHosts, before: Victims) -> bool:
    """Whether a later life of each serves."""
    members = {member["actor_id"]: member for member in cluster.status()["members"]}
    return all(
        members[name]["active"] and members[name]["incarnation"] > incarnation
        for name, incarnation in before.items()
    )


def _nothing(_: SeveralHosts, __: Machine) -> None:
    pass


FAULTS: Sequence[Fault] = (
    _fault("none", "no fault", "expert", _nothing, is_replaced=False),
    _fault(
        "delay",
        "50 ms each way to an expert's host, 10 s",
        "expert",
        bad(Weather(delay_s=0.05)),
        is_replaced=False,
    ),
    _fault(
        "loss-5", "5 % of frames lost, both ways, 10 s", "expert", bad(Weather(loss=0.05)), is_replaced=False
    ),
    _fault(
        "loss-20", "20 % of frames lost, both ways, 10 s", "expert", bad(Weather(loss=0.2)), is_replaced=False
    ),
    _fault("blink", f"an expert's host cut off for {BLINK_S:g} s", "expert", blink, is_replaced=False),
    _fault("cut", "an expert's host cut off until replaced", "expert", cut()),
    _fault("cut-out", "the same, but it hears all the while", "expert", cut(into=FAIR)),
    _fault("cut-into", "the same, but it is heard all the while", "expert", cut(out=FAIR)),
    _fault("fenced", "cut off until replaced, back, and its old life ended", "expert", cut(), is_fenced=True),
    _fault("die", "every process of an expert's host killed", "expert", die),
    _fault("vanish", "an expert's host without power", "expert", vanish),
    _fault("attention-cut", "the only attention host cut off until replaced", "attention", cut()),
    _fault("attention-vanish", "the only attention host without power", "attention", vanish),
)
