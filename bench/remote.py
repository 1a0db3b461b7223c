"""An engine whose experts are other processes, without Ray and HTTP.

What the benchmarks of the data plane run. Knows nothing of what is measured.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from actors.build import build_expert
from actors.engine import Engine
from actors.held import in_every_layer
from actors.options import ActorOptions, ExpertOrder
from actors.runner import Runner
from actors.scheduler import SchedulerLimits
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.load import load_decoder
from router.exchange import Exchange
from router.tcp import TcpTransport
from router.view import ActorId, ExpertActor, even_placement, make_view

TOKEN = b"a token for the bench"


def name_of(number: int) -> str:
    return f"expert-{number}"


@contextmanager
def other_process(work: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """`work(pipe, *arguments)` in a process of its own until the block ends; this end of the pipe."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def built_expert(directory: Path, number: int, of: int) -> tuple[Any, int]:
    """(server that is not running yet, its port), with its share of the experts."""
    torch.set_num_threads(1)
    config = Checkpoint.open(directory).config_to_serve(draft_tokens=0)
    held = even_placement(config.num_experts, of)[number]
    options = ActorOptions(
        actor_id=name_of(number),
        incarnation=1,
        directory=str(directory),
        dtype="float32",
        host="127.0.0.1",
        token=TOKEN,
        draft_tokens=0,
    )
    order = ExpertOrder(pairs=frozenset(in_every_layer(config, held)))
    server, loaded = build_expert(options, config, order, lambda progress: None)
    return server, loaded.port


def remote_engine(
    checkpoint: Checkpoint,
    ports: Sequence[int],
    *,
    context_tokens: int,
    num_sequences: int = 1,
    limits: SchedulerLimits | None = None,
) -> tuple[Engine, TcpTransport]:
    """Without drafts; its transport, for those who look into it."""
    config = checkpoint.config_to_serve(draft_tokens=0)
    actors = [
        ExpertActor(actor_id=ActorId(name_of(number)), incarnation=1, host="127.0.0.1", port=port)
        for number, port in enumerate(ports)
    ]
    placement = even_placement(config.num_experts, len(ports))
    view = make_view(
        1,
        actors,
        {actor.actor_id: held for actor, held in zip(actors, placement, strict=True)},
        num_experts=config.num_experts,
        first_layer=config.num_dense_layers,
        num_layers=config.num_moe_layers,
    )
    transport = TcpTransport(token=TOKEN, actor="attention-0", incarnation=1)
    runner = Runner(
        load_decoder(checkpoint.reader(), config, torch.float32, context_tokens),
        Exchange(transport, view),
        num_pages=1 + num_sequences * (context_tokens // PAGE_TOKENS + 1),
    )
    engine = Engine(runner, context_tokens=context_tokens, limits=limits, prefix_cache=False)
    return engine, transport
