"""The view: what it should show now, and the epoch of that.

Knows nothing of who is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster import moves
from cluster.member import Member
from cluster.term import NOTHING, Term
from model.config import ModelConfig
from router.view import ActorId, Epoch, ExpertActor, Pair, View


class Publisher:
    """epoch: of the newest view, that of an earlier controller at first."""

    def __init__(self, config: ModelConfig, epoch: int) -> None:
        self._config = config
        self._shown: list[object] | None = []  # by the newest view; None: nobody knows
        self.epoch = 0
        self.is_covered = False  # every expert has been in a view
        self.follow(epoch)
        self.view = self._make_view([])

    def follow(self, epoch: int) -> None:
        """An earlier controller has published so many: the next one comes at once, whatever it shows."""
        if epoch > self.epoch:
            self.epoch, self._shown, self.is_covered = epoch, None, True

    def publish(self, experts: Sequence[Member], remember: Callable[[], None]) -> bool:
        """Whether there is a view of a new epoch, because another should be shown than was.

        remember: notes the epoch down, before anybody is told.
        """
        named = moves.show(experts)
        shown: list[object] = [(term.life.number, pairs) for _, term, pairs in named]
        if shown == self._shown:
            return False
        self.epoch += 1
        self._shown = shown
        remember()
        of_term = {term.life.number: pairs for _, term, pairs in named}
        for member in experts:
            if (term := member.serving) is not None:
                pairs = of_term.get(term.life.number, NOTHING)
                if term.shown != pairs:
                    term.shown, term.shown_since = pairs, self.epoch
        self.view = self._make_view(named)
        self.is_covered |= not self.view.missing() and bool(self.view.actors)
        return True

    def _make_view(self, named: Sequence[tuple[Member, Term, frozenset[Pair]]]) -> View:
        return View(
            epoch=Epoch(self.epoch),
            num_experts=self._config.num_experts,
            first_layer=self._config.num_dense_layers,
            actors=tuple(_address(member.actor_id, term) for member, term, _ in named),
            held=tuple(_by_layer(pairs, self._config.routed_layers) for _, _, pairs in named),
        )


def _address(actor_id: str, term: Term) -> ExpertActor:
    assert term.loaded is not None, f"{actor_id} does not serve"
    host, port = term.loaded.host, term.loaded.port
    return ExpertActor(actor_id=ActorId(actor_id), incarnation=term.life.number, host=host, port=port)


def _by_layer(pairs: frozenset[Pair], layers: range) -> tuple[tuple[int, ...], ...]:
    held: list[list[int]] = [[] for _ in layers]
    for layer, expert in sorted(pairs):
        held[layer - layers.start].append(expert)
    return tuple(tuple(experts) for experts in held)
