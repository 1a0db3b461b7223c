"""Time, messages and faults of the simulation.

Things happen in order of a fake clock; nothing happens unless somebody lets time pass. Knows nothing of sums.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count, islice
from typing import TYPE_CHECKING

from router.view import ActorId, ExpertActor, even_placement
from tests.simulation import schedule as faults
from tests.simulation.controller import Controller
from tests.simulation.experts import NUM_EXPERTS, Life
from tests.simulation.schedule import PROMPT, Delivery, Fault, Schedule, Shape

if TYPE_CHECKING:
    from tests.simulation.wire import Wire

WIRE_S, TURN_S = 1e-4, 3e-4
NOTICE_S = 0.05  # until a death is known
LONGEST_DELAY_MS = 400  # to and from an anchor

Deed = Callable[[], None]


class World:
    """calm_s: until when something goes wrong, as far as is known."""

    def __init__(self, shape: Shape, schedule: Schedule) -> None:
        self.shape, self.now_s, self.calm_s = shape, 0.0, 0.0
        self.wires: list[Wire] = []
        self.others: Callable[[], None] = lambda: None
        self._agenda: list[tuple[float, int, Deed]] = []
        self._num_planned = count()
        self._num_sent = 0
        self._deliveries = schedule.deliveries
        self._faults = sorted(schedule.faults, key=lambda fault: fault.at)
        placement = even_placement(NUM_EXPERTS, shape.experts, shape.copies)
        self.held = {ActorId(f"expert-{number}"): held for number, held in enumerate(placement)}
        if shape.anchor:
            self.held[ActorId("anchor")] = tuple(range(NUM_EXPERTS))
        self.lives = {name: self._begin(name, 1) for name in self.held}
        self._zombies: dict[ExpertActor, Life] = {}
        self.controller = Controller(self)
        self._deeds: dict[str, Callable[[Fault, Life], None]] = {
            faults.DIE: self._die,
            faults.DOUBT: self._doubt,
            faults.CUT: self._cut,
            faults.HOLD: self._hold,
            faults.REFUSE: self._refuse,
            faults.SPOIL: self._spoil,
            faults.AWAY: self._away,
            faults.OTHERS: self._others,
        }

    # Time

    def at(self, delay_s: float, deed: Deed) -> None:
        heapq.heappush(self._agenda, (self.now_s + delay_s, next(self._num_planned), deed))

    def trouble(self, seconds: float, deed: Deed) -> None:
        """Something is wrong until `deed` has mended it."""
        self.calm_s = max(self.calm_s, self.now_s + seconds)
        self.at(seconds, deed)

    def let_pass(self, limit_s: float, until: Callable[[], bool]) -> None:
        """At most limit_s, unless something that happens takes longer."""
        end_s = self.now_s + limit_s
        while not until():
            if not self._agenda or self._agenda[0][0] > end_s:
                self.now_s = max(self.now_s, end_s)
                return
            time_s, _, deed = heapq.heappop(self._agenda)
            self.now_s = max(self.now_s, time_s)
            deed()

    def calm_down(self) -> None:
        """No more faults; let those pass that there were."""
        self._faults.clear()
        while self.now_s <= self.calm_s + 1.0:  # what the last of them made somebody send arrives, too
            self.let_pass(1.0, lambda: False)

    # The wire

    def send(self, life: Life | None, deed: Deed) -> None:
        """`deed` is the arrival of a message to or from `life`, or of one that the controller sends."""
        delivery = self._delivery(life)
        delay_s = WIRE_S + delivery.delay_ms / 1000
        for _ in range(delivery.copies):
            self.at(delay_s, lambda: self._arrive(life, deed))
        if delivery != PROMPT:
            self.calm_s = max(self.calm_s, self.now_s + delay_s)
        self._befall()

    def _delivery(self, life: Life | None) -> Delivery:
        number, self._num_sent = self._num_sent, self._num_sent + 1
        drawn = next(islice(self._deliveries, number, None), PROMPT)
        if life is None:  # Ray repeats what is lost
            return Delivery(drawn.delay_ms, max(1, drawn.copies))
        if life.actor.actor_id == "anchor":
            return Delivery(min(drawn.delay_ms, LONGEST_DELAY_MS), max(1, drawn.copies))
        return drawn

    def _arrive(self, life: Life | None, deed: Deed) -> None:
        if life is not None and life.is_held:
            self.at(0.1, lambda: self._arrive(life, deed))
        else:
            deed()

    def answer(self, life: Life) -> None:
        """Let it take a turn with all that will have arrived by then."""
        if not life.is_due:
            life.is_due = True
            self.at(TURN_S, lambda: self._take_turn(life))

    def _take_turn(self, life: Life) -> None:
        life.is_due = False
        if life.is_alive:
            for wire, frame in life.turn():
                self.send(life, lambda wire=wire, frame=frame: wire.receive(life, frame))

    def life_of(self, actor: ExpertActor) -> Life | None:
        """The life that a view names, if it can be reached."""
        life = self.lives[actor.actor_id]
        found = life if life.actor == actor else self._zombies.get(actor)
        return found if found is not None and found.is_alive else None

    def next_life(self, life: Life) -> Life:
        """Its successor; the old one goes on, if it lives, for those who know no other."""
        name = life.actor.actor_id
        self._zombies[life.actor] = life
        self.lives[name] = self._begin(name, life.actor.incarnation + 1)
        return self.lives[name]

    def _begin(self, name: ActorId, incarnation: int) -> Life:
        actor = ExpertActor(actor_id=name, incarnation=incarnation, host="simulated", port=incarnation)
        return Life(actor, self.held[name], self.shape.layers)

    # Faults

    def _befall(self) -> None:
        while self._faults and self._faults[0].at < self._num_sent:
            fault = self._faults.pop(0)
            life = self.lives[ActorId(f"expert-{fault.actor % self.shape.experts}")]
            self._deeds[fault.kind](fault, life)

    def _die(self, fault: Fault, life: Life) -> None:
        if not life.is_alive:
            return
        life.is_alive = False
        self._cut(fault, life)
        self.trouble(NOTICE_S, lambda: self.controller.replace(life, fault.seconds))

    def _doubt(self, fault: Fault, life: Life) -> None:
        self.controller.replace(life, fault.seconds)

    def _cut(self, fault: Fault, life: Life) -> None:
        for wire in self.wires:
            wire.lose(life)
        self.calm_s = max(self.calm_s, self.now_s)

    def _hold(self, fault: Fault, life: Life) -> None:
        def release() -> None:
            life.is_held = False

        life.is_held = True
        self.trouble(fault.seconds, release)

    def _refuse(self, fault: Fault, life: Life) -> None:
        def hold_again() -> None:
            life.experts.held = frozenset(self.held[life.actor.actor_id])

        life.experts.held = frozenset()
        self.trouble(fault.seconds, hold_again)

    def _spoil(self, fault: Fault, life: Life) -> None:
        def mend() -> None:
            life.experts.times_as_wide = 1

        life.experts.times_as_wide = 2
        self.trouble(fault.seconds, mend)

    def _away(self, fault: Fault, life: Life) -> None:
        self.controller.leave(fault.seconds)

    def _others(self, fault: Fault, life: Life) -> None:
        self.at(0.0, self.others)
