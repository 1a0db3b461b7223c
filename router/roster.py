"""Who of the view can be asked.

The view in use, its actors that are lost for now, and the lives that nobody is to ask again. Knows nothing of
parcels, and not where views come from.
"""

from __future__ import annotations

from collections.abc import Callable

from router.assign import Ints, assign
from router.view import NO_ACTOR, ActorId, ExpertActor, View

FORGET_S = 30.0  # a lost actor is tried again after so long, if there were others to ask


class Roster:
    """convicted: lives that sent rubbish where another did not."""

    def __init__(self, view: View, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.convicted: frozenset[ExpertActor] = frozenset()
        self.adopt(view)

    def adopt(self, view: View) -> None:
        """Go by this view; whoever is not convicted can be asked, also if it was lost before."""
        self.view = view
        self._index = {actor.actor_id: i for i, actor in enumerate(view.actors)}
        self._lost = {i for i, actor in enumerate(view.actors) if actor in self.convicted}
        self._forget_s = self._clock() + FORGET_S

    @property
    def is_stale(self) -> bool:
        """Whether somebody was lost so long ago that the view should be adopted again."""
        return bool(self._lost) and self._clock() >= self._forget_s

    def assign(self, layer: int, expert_P: Ints) -> Ints:
        """The actor of each pair, as an index into the view's; NO_ACTOR where nobody can be asked."""
        return assign(expert_P, self.view.replicas_of(layer), self._lost)

    def can_do_without(self, actor: ActorId, layer: int, expert_P: Ints) -> bool:
        """Whether others hold these experts."""
        without = {*self._lost, self._index[actor]}
        return not bool((assign(expert_P, self.view.replicas_of(layer), without) == NO_ACTOR).any())

    def lose(self, actor: ActorId) -> bool:
        """Ask it no more for now; false if that was so, or the view does not name it."""
        index = self._index.get(actor)
        if index is None or index in self._lost:
            return False
        self._lost.add(index)
        self._forget_s = self._clock() + FORGET_S
        return True

    def judge(self, verdicts: dict[ActorId, bool]) -> None:
        """Convict those whose rows another finds finite; those whom another confirms, take back."""
        for actor, is_guilty in verdicts.items():
            life = self.view.actors[self._index[actor]]
            if is_guilty:
                self.convicted |= {life}
            elif life not in self.convicted:
                self._lost.discard(self._index[actor])

    def pardon(self) -> None:
        """Nobody is convicted, from the next view on."""
        self.convicted = frozenset()
