"""Whole engines for tests: the real parts, in threads of one process.

Local: the experts are a shard in the process. Tcp: expert servers listen on loopback and are reached over
sockets.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from actors.build import local_exchange
from actors.engine import Engine
from actors.expert import ExpertServer
from actors.expert_sources import Files, load_experts
from actors.held import HeldExperts, in_every_layer
from actors.matchers import matcher_of
from actors.messages import ANY_TERMS, Terms
from actors.options import MicroBatches
from actors.runner import Runner
from actors.scheduler import SchedulerLimits
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.decoder import Decoder
from model.grammar import Grammars
from model.load import load_decoder
from model.sampling import Sampling
from router.exchange import Exchange
from router.tcp import TcpTransport
from router.view import ActorId, ExpertActor, View, even_placement, make_view

TOKEN = b"a cluster token for tests"
CONTEXT = 1024


@dataclass(frozen=True)
class Generated:
    """One sequence's tokens, their logprobs and why it ended."""

    token_ids: list[int]
    logprobs: list[float]
    finish: str | None


def load(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    draft_tokens: int = 0,
    context_tokens: int = CONTEXT,
) -> tuple[ModelConfig, Decoder, Checkpoint]:
    """The config is without the MTP layer unless something is drafted."""
    checkpoint = Checkpoint.open(directory)
    config = checkpoint.config_to_serve(draft_tokens)
    return config, load_decoder(checkpoint.reader(), config, dtype, context_tokens), checkpoint


def experts_of(
    checkpoint: Checkpoint,
    experts: Sequence[int],
    dtype: torch.dtype = torch.float32,
    draft_tokens: int = 0,
) -> HeldExperts:
    config = checkpoint.config_to_serve(draft_tokens)
    held = HeldExperts(config, dtype)
    load_experts(held, [Files(checkpoint.reader, dtype)], in_every_layer(config, experts))
    return held


def view_of(
    config: ModelConfig, epoch: int, actors: Sequence[ExpertActor], placement: Sequence[Sequence[int]]
) -> View:
    return make_view(
        epoch,
        actors,
        {actor.actor_id: held for actor, held in zip(actors, placement, strict=True)},
        num_experts=config.num_experts,
        first_layer=config.num_dense_layers,
        num_layers=len(config.routed_layers),
    )


def local_engine(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    limits: SchedulerLimits | None = None,
    num_pages: int = 128,
    draft_tokens: int = 0,
    prefix_cache: bool = True,
    micro_batches: MicroBatches = 1,
) -> Engine:
    parts = local_parts(directory, dtype, draft_tokens)
    return engine_of(parts, limits, num_pages, draft_tokens, prefix_cache, micro_batches)


def local_parts(
    directory: Path,
    dtype: torch.dtype = torch.float32,
    draft_tokens: int = 0,
    context_tokens: int = CONTEXT,
) -> tuple[Decoder, Exchange]:
    """What engines that work one after another may share."""
    config, decoder, checkpoint = load(directory, dtype, draft_tokens, context_tokens)
    return decoder, local_exchange(checkpoint.reader(), config, dtype, "local")


def engine_of(
    parts: tuple[Decoder, Exchange],
    limits: SchedulerLimits | None = None,
    num_pages: int = 128,
    draft_tokens: int = 0,
    prefix_cache: bool = True,
    micro_batches: MicroBatches = 1,
    context_tokens: int = CONTEXT,
) -> Engine:
    runner = Runner(*parts, num_pages=num_pages, draft_tokens=draft_tokens, micro_batches=micro_batches)
    return Engine(runner, context_tokens=context_tokens, limits=limits, prefix_cache=prefix_cache)


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    """Random tokens of the tiny model, the same every time."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(16, 272, (length,), generator=generator).tolist() for length in lengths]


@contextmanager
def running(server: ExpertServer) -> Iterator[ExpertServer]:
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def tcp_engine(
    directory: Path,
    num_experts: int,
    replicas: int = 1,
    dtype: torch.dtype = torch.float32,
    limits: SchedulerLimits | None = None,
    draft_tokens: int = 0,
    micro_batches: MicroBatches = 1,
) -> Iterator[Engine]:
    config, decoder, checkpoint = load(directory, dtype, draft_tokens)
    placement = even_placement(config.num_experts, num_experts, replicas)
    servers = [
        ExpertServer(
            config,
            experts_of(checkpoint, held, dtype, draft_tokens),
            actor_id=f"expert-{i}",
            incarnation=1,
            token=TOKEN,
        )
        for i, held in enumerate(placement)
    ]
    actors = [
        ExpertActor(actor_id=ActorId(f"expert-{i}"), incarnation=1, host=server.host, port=server.port)
        for i, server in enumerate(servers)
    ]
    transport = TcpTransport(token=TOKEN, actor="attention-0", incarnation=1)
    threads = [threading.Thread(target=server.run, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    exchange = Exchange(transport, view_of(config, 1, actors, placement), answer_timeout_s=10.0)
    try:
        runner = Runner(
            decoder, exchange, num_pages=128, draft_tokens=draft_tokens, micro_batches=micro_batches
        )
        yield Engine(runner, context_tokens=CONTEXT, limits=limits)
    finally:
        transport.close()
        for server, thread in zip(servers, threads, strict=True):
            server.stop()
            thread.join(10)


def generate(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling],
    terms: Sequence[Terms] = (),
    grammars: Grammars | None = None,
    emitted: Sequence[Sequence[int]] = (),
) -> list[Generated]:
    """Run the prompts together to their ends, all with the same sampling or each with its own.

    terms: of one after another, and again from the first. grammars: needed where a sampling has one. emitted:
    what each has said before, elsewhere.
    """
    told = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    for i, (prompt, own) in enumerate(zip(prompts, told, strict=True)):
        on = terms[i % len(terms)] if terms else ANY_TERMS
        before = emitted[i] if emitted else []
        matcher = None
        if own.grammar:
            assert grammars is not None
            matcher = matcher_of(grammars, grammars.compile(own.grammar), own, before)
        assert engine.submit("test", str(i), prompt, before, own, on, matcher=matcher) is None
    results = {str(i): Generated([], [], None) for i in range(len(prompts))}
    while engine.has_work:
        for events in engine.step().values():
            for event in events:
                had = results[event.request_id]
                before = emitted[int(event.request_id)] if emitted else []
                assert event.first == len(before) + len(had.token_ids)
                results[event.request_id] = Generated(
                    had.token_ids + list(event.token_ids), had.logprobs + list(event.logprobs), event.finish
                )
    return [results[str(i)] for i in range(len(prompts))]
