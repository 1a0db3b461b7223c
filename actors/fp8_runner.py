"""What an engine on one GPU is made of.

Buffers, cache and graphs of an FP8 model, sized by what the scheduler may ask of a step. Several runners may
use them one after another. Knows nothing of where the weights come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from actors.row_runner import RowRunner
from actors.scheduler import SchedulerLimits
from model.cache import PAGE_TOKENS
from model.config import ModelConfig
from model.fields import ConfigError
from model.fp8_cache import Fp8Cache
from model.fp8_graphs import Fp8Graphs
from model.fp8_weights import Fp8Model
from model.memory import fp8_step_bytes, pages_that_fit
from model.row_buffers import RowBuffers

MOST_ROWS = 1024  # of a graph: with more of them long chunks are quicker on their own


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
    num_pages: int | None,
    context_tokens: int,
    draft_tokens: int = 0,
    exact: bool = True,
) -> Fp8Parts:
    """num_pages: of the cache; None: as many as the device has room for beside the steps.

    exact: no bit of a token depends on what shares its steps; without it small steps are a little quicker.
    """
    device = model.embedding_VD.device
    draws = limits.max_sequences * (1 + draft_tokens)  # all single tokens go into one graph
    most_rows = min(limits.max_step_tokens, max(MOST_ROWS, draws))
    most_many = limits.max_step_tokens if limits.max_step_tokens > most_rows else 0
    buffers = RowBuffers(
        config,
        most_rows=most_rows,
        most_many=most_many,
        most_draws=draws,
        most_sequences=limits.max_sequences,
        context_tokens=context_tokens,
        device=device,
    )
    if num_pages is None:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        steps = fp8_step_bytes(config, most_rows, most_many, context_tokens)
        num_pages = pages_that_fit(config, free - steps, PAGE_TOKENS)
        if num_pages < 2:
            raise ConfigError(
                f"{free / 1e9:.1f} GB are free beside the weights, steps take {steps / 1e9:.1f} GB: no room "
                "for a cache; lower chunk_tokens or max_sequences, or serve fewer layers"
            )
    cache = Fp8Cache(config, num_pages, device)
    graphs = Fp8Graphs(config, model, cache, buffers, num_positions=context_tokens, exact=exact)
    return Fp8Parts(config=config, model=model, buffers=buffers, cache=cache, graphs=graphs)
