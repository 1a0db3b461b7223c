"""What an engine on one GPU is made of.

Buffers, cache and graphs of an FP8 model, sized by what the scheduler may ask of a step. Several runners may
use them one after another. Knows nothing of where the weights come from.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.row_runner import RowRunner
from actors.scheduler import SchedulerLimits
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_graphs import Fp8Graphs
from model.fp8_weights import Fp8Model
from model.row_buffers import RowBuffers

MOST_ROWS = 512  # of a graph


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8Parts:
    """All on the device of the model."""

    config: ModelConfig
    model: Fp8Model
    buffers: RowBuffers
    cache: Fp8Cache
    graphs: Fp8Graphs

    def runner(self, *, draft_tokens: int = 0, num_pages: int | None = None) -> RowRunner:
        """Captures what is not captured yet. num_pages: fewer than there are, for tests."""
        return RowRunner(
            self.config,
            self.graphs,
            self.buffers,
            num_pages=num_pages or self.cache.num_pages,
            cache_bytes_per_token=self.cache.bytes_per_token,
            draft_tokens=draft_tokens,
        )


def fp8_parts(
    config: ModelConfig,
    model: Fp8Model,
    limits: SchedulerLimits,
    *,
    num_pages: int,
    context_tokens: int,
    draft_tokens: int = 0,
    exact: bool = True,
) -> Fp8Parts:
    """exact: no bit of a token depends on what shares its steps; without it small steps are quicker."""
    device = model.embedding_VD.device
    most_rows = min(MOST_ROWS, limits.max_step_tokens)
    assert most_rows >= limits.max_sequences * (1 + draft_tokens), "a step of single tokens is one graph"
    buffers = RowBuffers(
        config,
        most_rows=most_rows,
        most_many=limits.max_step_tokens if limits.max_step_tokens > most_rows else 0,
        most_draws=limits.max_sequences * (1 + draft_tokens),
        most_sequences=limits.max_sequences,
        context_tokens=context_tokens,
        device=device,
    )
    cache = Fp8Cache(config, num_pages, device)
    graphs = Fp8Graphs(config, model, cache, buffers, num_positions=context_tokens, exact=exact)
    return Fp8Parts(config=config, model=model, buffers=buffers, cache=cache, graphs=graphs)
