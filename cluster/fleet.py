"""Every actor of the data plane: who lives, who should.

Begins lives, replaces what dies or hangs, lets go who is to leave, publishes views. A look at a time:
whatever has happened since the last one, the next goes on from there. Knows nothing of threads, of Ray, or of
why somebody is to come or go.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator

from cluster import moves
from cluster.balance import Rule, even_load
from cluster.farewell import Farewell
from cluster.first_read import FirstRead
from cluster.hosts import seat_for
from cluster.life import Life, hang_s
from cluster.lives import Lives
from cluster.loads import Loads
from cluster.member import EXPERT, Member
from cluster.plan import Plan, first_members
from cluster.processes import Answer, AnswerLost, Introduction, Memory, Processes, Pulse
from cluster.publisher import Publisher
from cluster.record import Record, Seat
from cluster.term import Term
from model.config import ModelConfig
from router.view import View

logger = logging.getLogger(__name__)

EVENTS_KEPT = 1000
INTRODUCTION_S = 10.0  # for all the living to say who they are, on a machine that is busy with a death


class Fleet:
    """Not thread-safe. clock: as `advance` is told it."""

    def __init__(
        self,
        plan: Plan,
        config: ModelConfig,
        token: bytes,
        *,
        processes: Processes,
        memory: Memory,
        clock: Callable[[], float],
    ) -> None:
        self.plan, self.config = plan, config
        self._processes, self._memory, self._clock = processes, memory, clock
        self.decisions: Counter[tuple[str, str]] = Counter()  # what, and by whom
        self.events: deque[tuple[float, str]] = deque(maxlen=EVENTS_KEPT)
        record = self._recalled()
        self.renew_upto = record.renew_upto
        self._publisher = Publisher(config, record.epoch)
        self.members = [_member(seat) for seat in record.seats] or first_members(plan, config)
        for member in self.members:
            member.has_served = record.epoch > 0  # somebody could read the checkpoint before
        self.farewells: list[Farewell] = []
        self.rule = Rule(copies=plan.replicas_per_expert, redundant_slots=plan.redundant_slots)
        self.load_LE = even_load(config)
        self._first_read = FirstRead()
        self._loads = Loads(plan, config, token, self._first_read, self._publisher)
        self._fatal_seed: int | None = None
        if not record.seats and plan.redundant_slots:
            self.rule.place(self.experts, config, self.load_LE)
        self.is_renewed = False
        self.lives = Lives(processes, record.num_lives, self.remember, plan.standbys)
        self._adopt_living()

    # Who there is

    @property
    def experts(self) -> list[Member]:
        return [member for member in self.members if member.is_expert]

    @property
    def attention(self) -> list[Member]:
        return [member for member in self.members if not member.is_expert]

    @property
    def epoch(self) -> int:
        return self._publisher.epoch

    @property
    def view(self) -> View:
        """The newest."""
        return self._publisher.view

    @property
    def now_s(self) -> float:
        return self._clock()

    @property
    def is_settled(self) -> bool:
        """Whether all is as it should be, and nothing under way."""
        return (
            all(member.is_active and not member.is_leaving and not member.heir for member in self.members)
            and not self.farewells
            and moves.are_done(self.experts)
        )

    def pending(self) -> list[Answer]:
        """Answers that something waits for."""
        pending = [answer for member in self.members for term in member.terms for answer in term.pending]
        pending += [farewell.life.pulse for farewell in self.farewells]
        return [*pending, *(life.pulse for life in self.lives.standbys)]

    def _all_lives(self) -> Iterator[Life]:
        yield from (term.life for member in self.members for term in member.terms)
        yield from (farewell.life for farewell in self.farewells)
        yield from self.lives.standbys

    def note(self, text: str) -> None:
        logger.warning("%s", text)
        self.events.append((self._clock(), text))

    def end(self) -> None:
        for life in self._all_lives():
            life.end()

    # What the next controller must know

    def _recalled(self) -> Record:
        written = self._memory.recall()
        try:
            return Record() if written is None else Record.from_bytes(written)
        except ValueError as error:  # better the plan that there was at first than no controller
            self.note(f"the record is lost: {error}")
            return Record()

    def remember(self) -> None:
        """Before anything is done that the record should tell of."""
        seats = tuple(
            Seat(actor_id=m.actor_id, is_leaving=m.is_leaving, wanted=m.wanted) for m in self.members
        )
        record = Record(
            num_lives=self.lives.num_begun, epoch=self.epoch, renew_upto=self.renew_upto, seats=seats
        )
        self._memory.remember(record.to_bytes())

    def _adopt_living(self) -> None:
        """Take over the actors that an earlier controller left; of two in one seat, the younger."""
        named = {member.actor_id: member for member in self.members}
        living = sorted(self._processes.living(), key=lambda found: -found[0])
        asked = [(number, process, process.ask("introduce")) for number, process in living]
        if asked:
            self._processes.wait([answer for _, _, answer in asked], INTRODUCTION_S, for_all=True)
        for number, process, answer in asked:
            self.lives.num_begun = max(self.lives.num_begun, number)
            life, introduction = Life(number, process), _introduction(answer)
            if introduction is None:  # it starts, loads or hangs: a new one is as good
                life.end()
            elif introduction.loaded is None:
                self.lives.standbys.append(life)
            else:
                self._publisher.follow(introduction.epoch)
                term = Term.adopted(life, introduction.loaded, introduction.pairs)
                self._first_read.learn(introduction.digests)
                self._first_read.compare(introduction.loaded, is_expert=_is_expert(introduction))
                self._seat(named.pop(introduction.actor_id, None), introduction, term)
        if asked:
            adopted = [member.actor_id for member in self.members if member.is_active]
            self.note(f"controller again in charge of {', '.join(adopted) or 'nobody'}")

    def _seat(self, member: Member | None, introduction: Introduction, term: Term) -> None:
        """member: None if it has given its seat up, which is no reason to end before everyone knows."""
        if member is not None:
            member.term = term
        else:
            self.farewells.append(
                Farewell(introduction.actor_id, term, _is_expert(introduction), since_s=self._clock())
            )

    # One look

    def advance(self, now_s: float, listened_s: float, heard_by_all_s: float) -> None:
        """Notice what has happened, and do what is to be done about it.

        listened_s: to the actors since the last look. heard_by_all_s: every ingress has asked where the
        attention actors are since then.
        """
        patience_s = hang_s(sum(life.is_late for life in self._all_lives()))
        for member in self.members:
            self._check(member, now_s, listened_s, patience_s)
        moves.collect(self.experts, now_s, self.note, self._first_read)
        self._publish()
        self._let_go(now_s, listened_s, patience_s, heard_by_all_s)
        moves.go_on(self.experts, self._epoch_in_use(), now_s, self._loads.order)
        for member in self.members:
            if member.is_due(now_s) and self._is_turn_of(member):
                member.term = self._next_term(member, is_urgent=not member.is_new)
            for term in member.terms:
                if not term.is_active and term.loading is None:
                    self._loads.begin(member, term, alone=not self.experts)
        may_begin = all(member.is_active or member.gave_up for member in self.members)
        self.lives.keep_warm(listened_s, patience_s, self.renew_upto, may_begin=may_begin)
        self._renew(now_s)

    def _check(self, member: Member, now_s: float, listened_s: float, patience_s: float) -> None:
        if member.check_load(now_s, self.note, self._first_read):
            self._welcome(member)
        pulse = member.check_life(now_s, listened_s, patience_s, self.note)
        self._end_convicted(now_s, pulse)
        over = member.check_heir(now_s, listened_s, patience_s, self.note, self._first_read)
        if over is not None:
            self.farewells.append(Farewell(member.actor_id, over, member.is_expert, now_s))
            self._welcome(member)

    def _end_convicted(self, now_s: float, pulse: Pulse | None) -> None:
        convicted = pulse.convicted if pulse else ()
        for member in self.experts:
            if (member.actor_id, member.incarnation) in convicted and member.is_active:
                member.end(now_s, self.note, "answered rubbish")

    @property
    def has_successor(self) -> bool:
        """Whether an attention actor serves that is not to leave: before, those that are serve on."""
        return any(member.is_active and not member.is_leaving for member in self.attention)

    def _let_go(self, now_s: float, listened_s: float, patience_s: float, heard_by_all_s: float) -> None:
        """Who is to leave and may gives up its seat; who has, ends when nobody needs it any more."""
        has_successor = self.has_successor
        for member in [member for member in self.members if member.may_go(has_successor=has_successor)]:
            self.members.remove(member)
            self.remember()
            for term in member.terms:
                gone = term.shown_since if member.is_expert else None
                self.farewells.append(Farewell(member.actor_id, term, member.is_expert, now_s, gone))
        epoch = self._epoch_in_use()
        for farewell in list(self.farewells):
            found = farewell.life.check(listened_s, patience_s)
            self._end_convicted(now_s, found if isinstance(found, Pulse) else None)
            if farewell.is_over(now_s, found, epoch_in_use=epoch, heard_by_all_s=heard_by_all_s):
                farewell.life.end()
                self.farewells.remove(farewell)
                self.note(f"{farewell.actor_id} has left (incarnation {farewell.life.number})")

    def _renew(self, now_s: float) -> None:
        """One after another, a next life for everyone whose life is of a number that is to be replaced."""
        if not self.renew_upto or not self.is_settled:
            return
        old = [member for member in self.members if member.incarnation <= self.renew_upto]
        if old and now_s >= old[0].begin_s:
            self.note(f"{old[0].actor_id} begins its next life (restart)")
            old[0].heir = self._next_term(old[0], is_urgent=False)
        elif not old and all(life.number > self.renew_upto for life in self.lives.standbys):
            self.renew_upto, self.is_renewed = 0, True
            self.remember()
            self.note("all are in their next lives; the controller follows (restart)")

    def _is_turn_of(self, member: Member) -> bool:
        """Who is new waits for others that are; not where each waits for a seat: that is a node to be had."""
        others = [other for other in self.members if other.is_new and other.term is not None]
        return not (member.is_new and others) or self.plan.has_seats

    def _next_term(self, member: Member, *, is_urgent: bool) -> Term:
        seat = seat_for(member.kind) if self.plan.has_seats else None
        return Term(life=self.lives.next(seat, is_urgent=is_urgent))

    def _publish(self) -> None:
        if not self._publisher.publish(self.experts, self.remember):
            return
        for farewell in self.farewells:
            farewell.note_epoch(self.epoch)
            if farewell.is_draining:  # it computes on
                farewell.life.ask("set_view", self.view.to_bytes())
        for member in self.attention:
            self.send_view(member)

    def send_view(self, member: Member) -> None:
        if member.serving is not None and not member.is_expert and self.experts:
            member.serving.life.ask("set_view", self.view.to_bytes())

    def _welcome(self, member: Member) -> None:
        """It has just begun to serve, maybe by a view that is old by now."""
        self.send_view(member)
        if self._fatal_seed is not None:
            self._poison(member, self._fatal_seed)

    def poison(self, seed: int) -> None:
        """For fault tests: whoever computes a sequence of this seed dies of it, also who serves later."""
        self._fatal_seed = seed
        for member in self.attention:
            self._poison(member, seed)

    def _poison(self, member: Member, seed: int) -> None:
        if member.serving is not None and not member.is_expert:
            member.serving.life.ask("poison", seed)

    def _epoch_in_use(self) -> int:
        """The oldest that somebody may still compute with."""
        terms = [term for member in self.attention for term in member.terms]
        lives = [term.life for term in terms if term.is_active or term.loading is not None]
        lives += [farewell.life for farewell in self.farewells if not farewell.is_expert]
        return min((life.epoch for life in lives), default=self.epoch)


def _introduction(answer: Answer) -> Introduction | None:
    """None: it does not serve, or does not answer."""
    if not answer.is_done():
        return None
    try:
        introduction: Introduction | None = answer.get()
    except AnswerLost:
        return None
    return introduction


def _is_expert(introduction: Introduction) -> bool:
    return introduction.actor_id.startswith(EXPERT)


def _member(seat: Seat) -> Member:
    return Member(seat.actor_id, seat.wanted, is_leaving=seat.is_leaving)
