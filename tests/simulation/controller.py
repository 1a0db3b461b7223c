"""The controller of the simulation.

Decides as cluster/controller.py does: a newer view, of the next epoch, whenever the set of lives that serve
has changed. Knows nothing of what befell a life.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.view import View, make_view
from tests.simulation.experts import FIRST_LAYER, NUM_EXPERTS, Life

if TYPE_CHECKING:
    from tests.simulation.world import World


class Controller:
    """Every life of the world serves when it begins."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._serving = dict(world.lives)
        self._epoch = 1
        self._away_until_s = 0.0

    def view(self) -> View:
        return make_view(
            self._epoch,
            [life.actor for life in self._serving.values()],
            {name: self._world.held[name] for name in self._serving},
            num_experts=NUM_EXPERTS,
            first_layer=FIRST_LAYER,
            num_layers=self._world.shape.layers,
        )

    def replace(self, life: Life, seconds: float) -> None:
        """It serves no more; its next life does in `seconds`. Nothing happens if that is known already."""
        name = life.actor.actor_id
        if self._serving.get(name) is not life:
            return
        del self._serving[name]
        self._publish()

        def serve() -> None:
            self._serving[name] = self._world.next_life(life)
            self._publish()

        self._world.trouble(seconds, serve)

    def leave(self, seconds: float) -> None:
        """Say nothing for so long."""
        self._away_until_s = max(self._away_until_s, self._world.now_s + seconds)
        self._world.trouble(seconds, lambda: None)

    def _publish(self) -> None:
        world = self._world
        if world.now_s < self._away_until_s:
            world.at(self._away_until_s - world.now_s, self._publish)
            return
        self._epoch += 1
        view = View.from_bytes(self.view().to_bytes())
        for wire in world.wires:
            world.send(None, lambda wire=wire: wire.put_view(view))
