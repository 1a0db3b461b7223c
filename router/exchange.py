"""Dispatch and combine: rows out to the experts, their sum back.

No collective: every parcel is a request that any replica may answer, any number of times. A lost actor costs
its missing rows a second dispatch; an expert that nobody holds parks the step until a newer view brings it
back. No sum is ever formed from fewer experts than the gate chose, nor from rows that one answer alone says
are not finite. Who can be asked is router/roster.py. Knows nothing of attention.

Letters: T tokens  K experts per token  D hidden  P = T * K pairs
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
from torch import Tensor

from kernels.sum_rows import is_finite
from router.heartbeat import SILENCE_S
from router.load import Edge, ExchangeCounters, ExpertLoad
from router.roster import Roster
from router.ticket import Pairs, Ticket
from router.transport import (
    Alive,
    DispatchKey,
    Event,
    Lost,
    Refused,
    Returned,
    RouterError,
    Transport,
)
from router.view import NO_ACTOR, ActorId, ExpertActor, View

logger = logging.getLogger(__name__)

PARKED_POLL_S = 0.02
LISTEN_S = 0.1  # of one poll: silence is counted in steps like this
FORGIVE_S = 5.0  # a step parked for so long tries the lost actors of its view again


class StepAbandoned(RouterError):  # noqa: N818
    """The exchange was told to stop while a step was waiting for experts."""


class Exchange:
    """One attention actor's side of the data plane; a micro-batch whose rows are away has an open ticket.

    next_view: asks for a newer view without waiting (None: there is none). answer_timeout_s: an actor that
    owes an answer for longer is taken for lost, whatever signs of life it gives. One that gives none for
    SILENCE_S is left for another, if another has what it holds.
    """

    def __init__(
        self,
        transport: Transport,
        view: View,
        *,
        next_view: Callable[[], View | None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
        answer_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.transport = transport
        self._next_view = next_view
        self._should_stop = should_stop
        self._answer_timeout_s = answer_timeout_s
        self._clock = clock
        self._step = 0
        self._attempt = 0
        self._forgive_s = 0.0
        self._open: list[Ticket] = []
        self._roster = Roster(view, clock)
        self.counters = ExchangeCounters()
        self.edges: dict[ActorId, Edge] = {}
        self.load = ExpertLoad(0, view.num_experts)
        self._adopt(view)

    @property
    def view(self) -> View:
        return self._roster.view

    @property
    def convicted(self) -> frozenset[ExpertActor]:
        """Lives that sent rubbish where another did not."""
        return self._roster.convicted

    def begin_step(self) -> None:
        """Between steps: adopt the newest view, number the step."""
        self._open.clear()  # of a step that was abandoned
        self._step += 1
        self._attempt = 0
        self.load.mark()
        if (view := self._newer_view()) is not None:
            self._adopt(view)
        elif self._roster.is_stale:
            self._adopt(self.view)

    def hear(self) -> None:
        """While idle: adopt the newest view, take what no step waits for so that it does not pile up."""
        if (view := self._newer_view()) is not None:
            self._adopt(view)
        for event in self.transport.poll(0.0):
            if isinstance(event, Lost):
                self._count_out(event)

    def dispatch(self, layer: int, rows_TD: Tensor, experts_TK: Tensor, micro_batch: int = 0) -> Ticket:
        """Send each token to the actors of its experts; returns at once."""
        deadline_s = self._clock() + self._answer_timeout_s
        ticket = Ticket.of(layer, micro_batch, rows_TD, experts_TK, deadline_s)
        self._open.append(ticket)
        self._send(ticket, np.arange(len(ticket.expert_P)))
        return ticket

    def combine(self, ticket: Ticket, weights_TK: Tensor) -> Tensor:
        """Wait for every row, then sum each token's in the order of K, in fp32; [T, D] in the rows' dtype.

        Raises StepAbandoned when told to stop while rows are missing.
        """
        start_s = self._clock()
        while not ticket.is_complete:
            if len(ticket.parked_P):
                self._unpark(ticket)
            else:
                self._receive(ticket)
        self.counters.waited_s += self._clock() - start_s
        self._open.remove(ticket)
        self.load.count(ticket.layer - self.view.first_layer, ticket.expert_P)
        return ticket.summed(weights_TK)

    def _adopt(self, view: View) -> None:
        if not len(self.load.pairs()):  # a view without actors has no layers
            self.load = ExpertLoad(view.num_layers, view.num_experts)
        for actor in view.actors:
            self.edges.setdefault(actor.actor_id, Edge())
        self._roster.adopt(view)
        self.transport.set_view(view)

    def _newer_view(self) -> View | None:
        view = self._next_view()
        return view if view is not None and view.epoch > self.view.epoch else None

    def _send(self, ticket: Ticket, pairs: Pairs) -> None:
        """Dispatch the given pairs; those whose expert nobody holds are parked."""
        actor_of_pair = self._roster.assign(ticket.layer, ticket.expert_P[pairs])
        for actor in sorted(set(actor_of_pair.tolist())):
            own = pairs[actor_of_pair == actor]
            if actor == NO_ACTOR:
                if not len(ticket.parked_P):
                    self._forgive_s = self._clock() + FORGIVE_S
                ticket.park(own)
                continue
            key = DispatchKey(
                epoch=self.view.epoch,
                step=self._step,
                layer=ticket.layer,
                micro_batch=ticket.micro_batch,
                attempt=self._attempt,
            )
            self._attempt += 1
            actor_id = self.view.actors[actor].actor_id
            parcel = ticket.send(key, actor_id, own, self._clock())
            self.edges[actor_id].note_sent(len(own), parcel.rows_RD.nbytes)
            self.transport.post(actor_id, parcel)

    def _receive(self, ticket: Ticket) -> None:
        """Take what arrives, for whichever ticket; on a loss, send the rows that are still missing elsewhere.

        Time is up for those alone that this ticket waits for.
        """
        start_s = self._clock()
        patience_s = PARKED_POLL_S if len(ticket.parked_P) else max(0.0, ticket.deadline_s - start_s)
        events = self.transport.poll(min(patience_s, LISTEN_S))
        for event in events:
            self._take(event)
        if self._should_stop():
            raise StepAbandoned("the actor is stopping while experts owe rows")
        if all(isinstance(event, Alive) for event in events) and self._clock() >= ticket.deadline_s:
            for actor in sorted(ticket.owing):
                self._lose(Lost(actor=actor, reason=f"no answer within {self._answer_timeout_s:g} s"))
        self._mind_silence(ticket, {event.actor for event in events}, self._clock() - start_s)

    def _take(self, event: Event) -> None:
        """Answers to attempts that were given up fit no ticket: those rows come from elsewhere."""
        if isinstance(event, Lost):
            self._lose(event)
        elif isinstance(event, Returned):
            for ticket in self._waiting_for(event.key):
                self._place(ticket, event)
        elif isinstance(event, Refused):
            for ticket in self._waiting_for(event.key):
                self._refused(ticket, event)

    def _waiting_for(self, key: DispatchKey) -> list[Ticket]:
        """The one, if any."""
        return [ticket for ticket in self._open if key in ticket.waiting]

    def _mind_silence(self, ticket: Ticket, heard: set[ActorId], listened_s: float) -> None:
        """Leave who owes rows and gives no sign of life; if nobody else has them, look for a newer view."""
        if not ticket.waiting:
            return
        for actor in sorted(ticket.owing):
            silence = ticket.silences[actor]
            if actor in heard:
                silence.heard()
                continue
            silence.listened(listened_s)
            if silence.quiet_s < SILENCE_S:
                continue
            if all(self._is_replaceable(other, actor) for other in self._open):
                self._lose(Lost(actor=actor, reason=f"silent for {SILENCE_S:g} s"))
            elif (view := self._newer_view()) is not None:
                self._move(view)
                return

    def _is_replaceable(self, ticket: Ticket, actor: ActorId) -> bool:
        """Whether others hold all that `actor` owes."""
        owed = [pairs for _, pairs in ticket.owed_by(actor)]
        return not owed or self._roster.can_do_without(
            actor, ticket.layer, ticket.expert_P[np.concatenate(owed)]
        )

    def _place(self, ticket: Ticket, event: Returned) -> None:
        _, pairs = ticket.waiting[event.key]
        expected, rows_PD = ticket.returned_PD, event.rows_PD
        if rows_PD.dtype != expected.dtype or rows_PD.shape != (len(pairs), expected.shape[1]):
            reason = f"{tuple(rows_PD.shape)} {rows_PD.dtype} came for {len(pairs)} pairs"
            self._refused(ticket, Refused(actor=event.actor, key=event.key, reason=reason))
            return
        if not is_finite(rows_PD) and (doubted := ticket.doubted(pairs, rows_PD)):
            self._doubt(ticket, event, doubted)
            return
        self.edges[event.actor].note_answer(self._clock() - ticket.sent_s[event.key], rows_PD.nbytes)
        if ticket.accused:
            self._roster.judge(ticket.verdicts(event.actor, pairs, rows_PD))
        ticket.place(event.key, rows_PD)

    def _doubt(self, ticket: Ticket, event: Returned, doubted: list[int]) -> None:
        """Ask another for rows that are not finite; without a replica, the same actor."""
        self.counters.doubted_pairs += len(doubted)
        ticket.accused.update(dict.fromkeys(doubted, event.actor))
        if self._is_replaceable(ticket, event.actor):
            self._lose(Lost(actor=event.actor, reason=f"{len(doubted)} rows that are not finite"))
        else:
            logger.warning("%s sent rows that are not finite: asked again", event.actor)
            self._retry(ticket, ticket.waiting.pop(event.key)[1])

    def _refused(self, ticket: Ticket, event: Refused) -> None:
        _, pairs = ticket.waiting.pop(event.key)
        self._lose(Lost(actor=event.actor, reason=f"refused: {event.reason}"))
        self._retry(ticket, pairs)

    def _lose(self, event: Lost) -> None:
        """Count the actor out of this view and re-send what it owed."""
        self._count_out(event)
        for ticket in self._open:
            for key, pairs in ticket.owed_by(event.actor):
                self.transport.cancel(key)
                del ticket.waiting[key]
                self._retry(ticket, pairs)

    def _count_out(self, event: Lost) -> None:
        if self._roster.lose(event.actor):
            self.counters.lost_actors += 1
            logger.warning("expert actor %s lost: %s", event.actor, event.reason)

    def _retry(self, ticket: Ticket, pairs: Pairs) -> None:
        ticket.deadline_s = self._clock() + self._answer_timeout_s
        self.counters.retried_pairs += len(pairs)
        self._send(ticket, pairs)

    def _unpark(self, ticket: Ticket) -> None:
        """Wait for a newer view and try parked pairs again.

        If none comes, the lost actors of this view get another chance: what cut us off may have passed
        without anyone else noticing.
        """
        start_s = self._clock()
        view = self._newer_view()
        if view is not None:
            self._move(view)
        elif start_s >= self._forgive_s:
            self._roster.pardon()
            self._move(self.view)
        else:
            self._receive(ticket)
            self.counters.parked_s += self._clock() - start_s

    def _move(self, view: View) -> None:
        """Adopt a view in mid-step: ask those that it names for all that is missing."""
        self._adopt(view)
        for ticket in self._open:
            still_open = list(ticket.waiting.items())
            ticket.forget_doubts()
            for key, (_, pairs) in still_open:  # the new view may have dropped those connections: ask again
                self.transport.cancel(key)
                del ticket.waiting[key]
                self._retry(ticket, pairs)
            parked, ticket.parked_P = ticket.parked_P, np.empty(0, dtype=np.int64)
            self._retry(ticket, parked)
