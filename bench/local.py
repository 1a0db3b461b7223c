"""An attention actor that holds every expert itself: its engine alone, or with its socket.

What runs without Ray. Knows nothing of what is measured.
"""

from __future__ import annotations

import torch

from actors.attention import AttentionServer
from actors.build import build_attention, local_exchange
from actors.engine import Engine
from actors.options import ActorOptions, AttentionOptions, Loaded
from actors.runner import Runner
from cluster.embedded import embedded_directory
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


def embedded_actor(
    actor_id: str, token: bytes, *, context_tokens: int, cache_tokens: int
) -> tuple[AttentionServer, Loaded]:
    """Of the embedded model, drafting, bound to loopback. Raises what actors/build.py raises."""
    options = ActorOptions(
        actor_id=actor_id,
        incarnation=1,
        directory=str(embedded_directory()),
        dtype="float32",
        host="127.0.0.1",
        token=token,
        draft_tokens=1,
    )
    attention = AttentionOptions(
        local=True,
        context_tokens=context_tokens,
        cache_tokens=cache_tokens,
        chunk_tokens=128,
        max_sequences=64,
        prefix_cache=True,
        max_queue=1024,
        micro_batches=1,
        threads=1,
        answer_timeout_s=10.0,
    )
    return build_attention(options, attention, None, "", lambda _: None)
