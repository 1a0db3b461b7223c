"""Experts on their way from actor to actor, while both serve.

Who is to hold an expert takes it first, from the files or from who holds it; the view names another only when
all of its new holders have it; the old copy is dropped only when nobody computes by a view that shows it.
Whatever happens in between, the next look goes on from what is held. Knows nothing of why a placement is
wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from actors.options import ExpertOrder, Taken
from cluster.first_read import FirstRead
from cluster.member import Member, Note
from cluster.processes import AnswerLost
from cluster.term import NOTHING, Term
from router.view import Pair

TAKE_PAUSE_S = 5.0  # after experts that could not be read


def collect(members: Iterable[Member], now_s: float, note: Note, first_read: FirstRead) -> None:
    """Take note of what has been taken and dropped."""
    for member in members:
        term = member.serving
        if term is None or term.work is None or not term.work.is_done():
            continue
        try:
            taken: Taken | None = term.work.get()  # None: it has dropped some
            if taken is not None:
                first_read.learn(taken.digests)  # it has compared them itself
                note(f"{member.actor_id} has taken {taken.origins}")
            term.held |= term.taking
        except AnswerLost as error:  # if it died, its pulse says so
            term.pause_until_s = now_s + TAKE_PAUSE_S
            note(f"{member.actor_id} cannot take {len(term.taking)} experts: {error}")
        term.work, term.taking = None, NOTHING


def show(members: Sequence[Member]) -> list[tuple[Member, Term, frozenset[Pair]]]:
    """What the view should name: who serves, and what it should say that they hold.

    All that they hold and should; of the rest, what those that should hold it instead do not hold yet.
    """
    wanted, missing = NOTHING, NOTHING
    for member in members:
        if member.wanted is not None:
            wanted |= member.wanted
            missing |= member.wanted - (member.serving.held if member.serving else NOTHING)
    is_replaced = wanted - missing
    shown = []
    for member in members:
        if (term := member.serving) is not None:
            pairs = term.held - (is_replaced - (member.wanted or NOTHING))
            if pairs or not member.is_leaving:
                shown.append((member, term, pairs))
    return shown


def go_on(
    members: Iterable[Member],
    epoch_in_use: int,
    now_s: float,
    order: Callable[[frozenset[Pair]], ExpertOrder],
) -> None:
    """Ask for what is still to be taken and may be dropped. epoch_in_use: the oldest one."""
    for member in members:
        term = member.serving
        if term is None or term.work is not None or member.wanted is None:
            continue
        missing = member.wanted - term.held
        if missing and now_s >= term.pause_until_s:
            term.work, term.taking = term.life.ask("take", order(missing)), missing
        elif term.shown_since <= epoch_in_use and (spare := term.held - term.shown - member.wanted):
            term.held -= spare
            term.work = term.life.ask("drop", spare)


def are_done(members: Iterable[Member]) -> bool:
    """Whether everyone who serves holds what it should, and nothing else."""
    serving = [(member.serving, member.wanted) for member in members]
    return all(term is None or (term.work is None and term.held == wanted) for term, wanted in serving)
