"""An exchange whose only expert actor is this one.

For who holds every expert itself: rows come back by a function call, or never leave a captured step. Knows
nothing of how experts are computed.
"""

from __future__ import annotations

from model.config import ModelConfig
from router.exchange import Exchange
from router.local import ForwardExperts, LocalTransport
from router.view import ActorId, ExpertActor, make_view


def loopback_exchange(config: ModelConfig, actor_id: str, forward: ForwardExperts) -> Exchange:
    """All experts live in this process under the name actor_id; forward computes what is dispatched."""
    own = ExpertActor(actor_id=ActorId(actor_id), incarnation=1, host="", port=0)
    view = make_view(
        1,
        [own],
        {own.actor_id: range(config.num_experts)},
        num_experts=config.num_experts,
        first_layer=config.num_dense_layers,
        num_layers=len(config.routed_layers),
    )
    return Exchange(LocalTransport(forward), view)
