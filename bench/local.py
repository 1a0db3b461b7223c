"""An attention actor's engine that holds every expert itself.

What the benchmarks without sockets run. Knows nothing of what is measured.
"""

from __future__ import annotations

import torch

from actors.build import local_exchange
from actors.engine import Engine
from actors.runner import Runner
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.load import load_decoder


def local_engine(
    checkpoint: Checkpoint,
    *,
    context_tokens: int,
    num_sequences: int,
    dtype: torch.dtype = torch.float32,
    config: ModelConfig | None = None,
) -> Engine:
    """Without drafts. config: the checkpoint's where it is not given, or one that takes less of it."""
    config, reader = config or checkpoint.config_to_serve(draft_tokens=0), checkpoint.reader()
    runner = Runner(
        load_decoder(reader, config, dtype, context_tokens),
        local_exchange(reader, config, dtype, "local"),
        num_pages=1 + num_sequences * (context_tokens // PAGE_TOKENS + 1),
    )
    return Engine(runner, context_tokens=context_tokens)
