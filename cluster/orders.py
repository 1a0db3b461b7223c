"""Orders to a fleet: scale, drain, restart.

An order changes what there should be, and says so in words; the fleet does the rest. Knows nothing of who
gives it.

Errors: ValueError says what cannot be and why; nothing has changed then.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from cluster.fleet import Fleet
from cluster.member import ATTENTION, EXPERT, Member

RESTART = "restart"
BY_ORDER = "by order"
Arguments = Mapping[str, object]


def obey(fleet: Fleet, order: str, arguments: Arguments) -> str:
    """Do as an operator says; returns what that is."""
    deeds = {
        "scale": lambda: scale(fleet, _counts(arguments), BY_ORDER),
        "drain": lambda: drain(fleet, str(arguments.get("name", "")), BY_ORDER),
        RESTART: lambda: restart(fleet, BY_ORDER),
    }
    if order not in deeds:
        raise ValueError(f"{order[:40]!r} is no order: {', '.join(deeds)}")
    done = deeds[order]()
    fleet.decisions[order, "operator"] += 1
    return done


def scale(fleet: Fleet, counts: Mapping[str, int], reason: str) -> str:
    """So many actors of each kind; who came last leaves first."""
    added: list[Member] = []
    leaving: list[Member] = []
    for kind, wanted in counts.items():
        staying = [m for m in _of_kind(fleet, kind) if not m.is_leaving]
        missing = wanted - len(staying)
        added += [_new_member(fleet, kind, place) for place in range(missing)]
        leaving += sorted(staying, key=_number)[wanted:]
    if not added and not leaving:
        return "nothing to do"
    return _change(fleet, added, leaving, reason)


def drain(fleet: Fleet, name: str, reason: str) -> str:
    """An actor by its id, or every one on a host, leaves."""
    leaving = [
        m for m in fleet.members if not m.is_leaving and (m.actor_id == name or _host(m) == name) and name
    ]
    if not leaving:
        raise ValueError(f"{name[:40]!r} is neither an actor that serves nor a host of one")
    return _change(fleet, [], leaving, reason)


def restart(fleet: Fleet, reason: str) -> str:
    """Every process of now ends, one after another, each when its next life serves."""
    fleet.renew_upto = fleet.lives.num_begun
    fleet.remember()
    fleet.note(f"restart of all, one after another ({reason})")
    return f"{len(fleet.members)} actors and {len(fleet.lives.standbys)} standbys begin their next lives"


def _change(fleet: Fleet, added: list[Member], leaving: list[Member], reason: str) -> str:
    before = list(fleet.members)
    for member in leaving:
        member.is_leaving = True
    fleet.members += added
    try:
        if not any(not m.is_leaving for m in fleet.attention):
            raise ValueError("somebody must serve: keep at least one attention actor")
        if any(member.is_expert for member in [*added, *leaving]):
            fleet.rule.place(fleet.experts, fleet.config, fleet.load_LE)
    except ValueError:
        fleet.members = before
        for member in leaving:
            member.is_leaving = False
        raise
    fleet.remember()
    words = [f"{member.actor_id} comes" for member in added] + [f"{m.actor_id} leaves" for m in leaving]
    fleet.note(f"{', '.join(words)} ({reason})")
    return ", ".join(words)


def _counts(arguments: Arguments) -> dict[str, int]:
    """Of {"experts": 6, "attention": 2}."""
    kinds = {"experts": EXPERT, "attention": ATTENTION}
    unknown = arguments.keys() - kinds.keys()
    if unknown or not arguments:
        raise ValueError("scale wants experts=N, attention=N or both")
    for name, wanted in arguments.items():
        if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= 1024:
            raise ValueError(f"{name} is {wanted!r}: must be a whole number from 1 to 1024")
    return {kinds[name]: wanted for name, wanted in arguments.items() if isinstance(wanted, int)}


def _of_kind(fleet: Fleet, kind: str) -> list[Member]:
    if kind == ATTENTION:
        return fleet.attention
    if not fleet.experts:
        raise ValueError("this cluster was started with experts=0: its experts live in the attention actors")
    return fleet.experts


def _new_member(fleet: Fleet, kind: str, place: int) -> Member:
    """With the place-th number that nobody has, or has not given back yet."""
    taken = {member.actor_id for member in fleet.members} | {gone.actor_id for gone in fleet.farewells}
    free = (f"{kind}-{number}" for number in count() if f"{kind}-{number}" not in taken)
    for _ in range(place):
        next(free)
    return Member(next(free), frozenset() if kind == EXPERT else None, has_served=True, is_new=True)


def _number(member: Member) -> int:
    return int(member.actor_id.rpartition("-")[2])


def _host(member: Member) -> str | None:
    return member.serving.loaded.host if member.serving and member.serving.loaded else None
