"""A fleet through faults and orders, on a fake clock.

What goes wrong and when is data, drawn by hypothesis. At the end all must be as the goals say. Knows nothing
of hidden states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from actors.options import AttentionOptions
from cluster.autoscale import Autoscaler, Bounds
from cluster.fleet import Fleet
from cluster.governor import Governor
from cluster.orders import obey
from cluster.plan import Plan
from cluster.rebalance import Rebalancer
from tests.simulation.machine import Crash, Machine

KILL = "kill"  # a process ends
HANG = "hang"  # it does nothing more
DAMAGE = "damage"  # the next load or take fails
CRASH = "crash"  # the controller ends, `who` calls from now on
DOUBLE = "double"  # the same, and the youngest process with it
KINDS = (KILL, HANG, DAMAGE, CRASH, DOUBLE)
SCALE_EXPERTS = "scale experts"  # to 1 to 4 of them
SCALE_ATTENTION = "scale attention"  # to 1 to 3
DRAIN = "drain"
RESTART = "restart"
SHIFT = "shift"  # the load has changed
ORDERS = (SCALE_EXPERTS, SCALE_ATTENTION, DRAIN, RESTART, SHIFT)

NUM_EXPERTS, LAYERS = 6, range(1, 3)
REBORN_S = 0.6
LONGEST_S = 400.0  # until all must be well after the last fault: pauses after many deaths included
CONFIG: Any = SimpleNamespace(num_experts=NUM_EXPERTS, num_dense_layers=LAYERS.start, routed_layers=LAYERS)
OPTIONS = AttentionOptions(
    local=False,
    context_tokens=64,
    cache_tokens=128,
    chunk_tokens=64,
    max_sequences=1,
    prefix_cache=False,
    max_queue=1,
    micro_batches=1,
    threads=1,
    answer_timeout_s=1.0,
)


def plan(
    *,
    attention: int = 2,
    experts: int = 2,
    copies: int = 1,
    redundant: int = 0,
    rebalance_s: float = 0.0,
    autoscale: Mapping[str, Bounds] | None = None,
    has_seats: bool = False,
) -> Plan:
    return Plan(
        device="cpu",
        directory="d",
        dtype="float32",
        data_host="h",
        num_attention=attention,
        num_experts=experts,
        replicas_per_expert=copies,
        redundant_slots=redundant,
        standbys=0 if has_seats else 1,
        rebalance_s=rebalance_s,
        autoscale=autoscale or {},
        draft_tokens=0,
        has_seats=has_seats,
        weights_from="files",
        attention=OPTIONS,
    )


@dataclass(frozen=True, slots=True)
class Fault:
    """at_s: the time. who: of the living processes, modulo how many there are."""

    at_s: float
    kind: str
    who: int = 0


def faults(*kinds: str) -> st.SearchStrategy[list[Fault]]:
    times = st.integers(0, 60).map(lambda tenths: tenths / 10)
    return st.lists(st.builds(Fault, times, st.sampled_from(kinds), st.integers(0, 30)), max_size=6)


class Story:
    """A controller and its machine; `until_well` returns when all is as it should be."""

    def __init__(
        self, begin: Plan, fleet_type: type[Fleet] = Fleet, machine_type: type[Machine] = Machine
    ) -> None:
        self.machine = machine_type()
        self._begin = begin
        self._fleet_type = fleet_type
        self._fleet: Fleet | None = None
        self._checked_s = 0.0
        self.has_been_well = False
        self.governor = Governor(Rebalancer(begin.rebalance_s), Autoscaler(begin.autoscale))

    @property
    def fleet(self) -> Fleet:
        assert self._fleet is not None
        return self._fleet

    def run(self, seconds: float) -> None:
        end_s = self.machine.now_s + seconds
        while self.machine.now_s < end_s:
            self.look()

    def until_well(self) -> None:
        """And stays so: a fault that was noticed late is a fault."""
        end_s = self.machine.now_s + LONGEST_S
        while not self._is_well():
            assert self.machine.now_s < end_s, list(self.fleet.events)[-10:]
            self.look()

    def _is_well(self) -> bool:
        is_well = self._fleet is not None and self.fleet.is_settled and not self.fleet.renew_upto
        self.has_been_well |= is_well
        return is_well

    def look(self) -> None:
        """Once around the controller's loop."""
        machine = self.machine
        try:
            if self._fleet is None:
                self._fleet = self._fleet_type(
                    self._begin,
                    CONFIG,
                    b"",
                    processes=machine,
                    memory=machine,
                    clock=lambda: machine.now_s,
                )
            now_s, since_s = machine.now_s, self._checked_s
            self._checked_s = now_s
            self._fleet.advance(now_s, now_s - since_s, now_s - 0.3)
            self.governor.look(self._fleet, now_s)
            machine.wait(self._fleet.pending(), 0.2)
            self._is_well()
            if self._fleet.is_renewed:
                self._end()
        except Crash:
            self._end()

    def order(self, fault: Fault) -> None:
        """Given to whoever is in charge; one that cannot be obeyed changes nothing."""
        try:
            if fault.kind == SCALE_EXPERTS:
                obey(self.fleet, "scale", {"experts": 1 + fault.who % 4})
            elif fault.kind == SCALE_ATTENTION:
                obey(self.fleet, "scale", {"attention": 1 + fault.who % 3})
            elif fault.kind == DRAIN:
                members = self.fleet.members
                obey(self.fleet, "drain", {"name": members[fault.who % len(members)].actor_id})
            elif fault.kind == RESTART:
                obey(self.fleet, "restart", {})
            else:
                load_LE = np.random.default_rng(fault.who).random(self.fleet.load_LE.shape)
                self.fleet.rule.place(self.fleet.experts, CONFIG, load_LE)
                self.fleet.remember()
        except ValueError:
            return
        except Crash:
            self._end()

    def _end(self) -> None:
        """Of the controller's process; another begins."""
        self._fleet = None
        self.machine.let_pass(REBORN_S)
        self._checked_s = self.machine.now_s

    def befall(self, fault: Fault) -> None:
        machine = self.machine
        if fault.kind in ORDERS and self._fleet is not None:
            self.order(fault)
        if fault.kind in (CRASH, DOUBLE):
            machine.crash_in = fault.who
        if fault.kind == DAMAGE and self.has_been_well:  # else it is no checkpoint
            machine.failing_loads += 1
        if fault.kind in (KILL, HANG, DOUBLE) and machine.alive:
            victim = machine.alive[-1 if fault.kind == DOUBLE else fault.who % len(machine.alive)]
            if fault.kind == HANG:
                victim.is_hung = True
            else:
                victim.die()


def play(
    begin: Plan,
    faults: list[Fault],
    fleet_type: type[Fleet] = Fleet,
    machine_type: type[Machine] = Machine,
) -> Story:
    """From nothing, through the faults, until all is well."""
    story = Story(begin, fleet_type, machine_type)
    for fault in sorted(faults, key=lambda fault: fault.at_s):
        story.run(fault.at_s - story.machine.now_s)
        story.befall(fault)
    story.until_well()
    story.run(10.0)  # what hangs is found, late if it is many
    story.until_well()
    story.run(1.0)
    check_end(story)
    return story


def check_end(story: Story) -> None:
    """All seats are taken, by one life each, and nobody else lives."""
    fleet = story.fleet
    assert fleet.is_settled, list(fleet.events)[-10:]
    lives = [member.term.life for member in fleet.members if member.term] + fleet.lives.standbys
    assert len(fleet.lives.standbys) == fleet.plan.standbys
    assert sorted(life.number for life in lives) == sorted(p.number for p in story.machine.alive), "orphans"
    assert not fleet.view.missing()
    for server in story.machine.attention:
        assert server.in_use == fleet.view, "an old view is gone on with"
    for member in fleet.experts:
        worker = story.machine.processes[member.incarnation].worker
        assert worker.server is not None
        assert worker.server.pairs == member.wanted
    copies = Counter(pair for member in fleet.experts for pair in member.wanted or ())
    assert min(copies.values()) >= fleet.plan.replicas_per_expert
