"""What a life is told to load.

All that it needs to become what its seat wants. Knows nothing of when, nor of what comes of it.
"""

from __future__ import annotations

from actors.options import ActorOptions, ExpertOrder
from cluster.first_read import FirstRead
from cluster.member import Member
from cluster.plan import Plan
from cluster.publisher import Publisher
from cluster.term import Term
from model.config import ModelConfig
from router.view import Pair


class Loads:
    """Orders to load, with what is known at the moment of each."""

    def __init__(
        self, plan: Plan, config: ModelConfig, token: bytes, first_read: FirstRead, publisher: Publisher
    ) -> None:
        self._plan, self._config, self._token = plan, config, token
        self._first_read, self._publisher = first_read, publisher

    def order(self, pairs: frozenset[Pair]) -> ExpertOrder:
        """To an expert actor: hold these, which those in the newest view may hold."""
        known = self._first_read.digests_of(pairs)
        return ExpertOrder(pairs=pairs, known=known, view=self._publisher.view.to_bytes())

    def begin(self, member: Member, term: Term, *, alone: bool) -> None:
        """Tell a life what to be; an attention actor, only when there are experts to dispatch to.

        alone: there are no expert actors.
        """
        options = self._options(member, term)
        if member.wanted is not None:
            term.held = member.wanted
            term.loading = term.life.do("load_expert", options, self._config, self.order(member.wanted))
        elif self._publisher.is_covered or alone:
            view = None if alone else self._publisher.view.to_bytes()
            term.life.epoch = self._publisher.epoch
            term.loading = term.life.do(
                "load_attention", options, self._plan.attention, view, self._first_read.checksum
            )

    def _options(self, member: Member, term: Term) -> ActorOptions:
        plan = self._plan
        return ActorOptions(
            actor_id=member.actor_id,
            incarnation=term.life.number,
            directory=plan.directory,
            dtype=plan.dtype,
            host=plan.data_host,
            token=self._token,
            draft_tokens=plan.draft_tokens,
            device=plan.device,
            is_urgent=not member.is_new and term is not member.heir,
            weights_from=plan.weights_from,
        )
