"""From a checkpoint to an actor that listens.

The same for a Ray actor, a plain process and a thread in a test. Each reads only the tensors it owns. Knows
nothing of who starts it.

Errors: CheckpointError from the load, ConfigError on a CPU without numba, OSError when the address cannot be
bound.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from actors.attention import AttentionServer, ViewInbox
from actors.engine import Engine
from actors.expert import ExpertServer
from actors.expert_peer import Taker, peers_of
from actors.expert_sources import NOTHING_KNOWN, Files, Source, load_experts
from actors.exposition import MetricsServer
from actors.held import HeldExperts, in_every_layer
from actors.loopback import loopback_exchange
from actors.options import ActorOptions, AttentionOptions, ExpertOrder, Loaded, Taken, WeightsRead
from actors.runner import Runner
from actors.scheduler import SchedulerLimits
from actors.step_runner import StepRunner
from kernels.compiled import IS_COMPILED
from kernels.crew import helper
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.fields import ConfigError
from model.grammar import Grammars
from model.load import Reader, load_decoder
from model.names import attention_tensors, expert_tensors, mtp_attention_tensors
from model.reader import Progress, WeightReader
from model.shards import CheckpointError
from router.exchange import Exchange
from router.tcp import TcpTransport
from router.view import Pair, View

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}  # of the weights

Note = Callable[[Progress], None]


def build_expert(
    options: ActorOptions, config: ModelConfig, order: ExpertOrder, note: Note
) -> tuple[ExpertServer, Loaded]:
    """Take what is ordered and bind. config: as served, since the files may be gone by now."""
    _check_compiled(options)
    held = HeldExperts(config, DTYPES[options.dtype])
    files, origins = _take(held, options, order, note)
    server = ExpertServer(
        config,
        held,
        actor_id=options.actor_id,
        incarnation=options.incarnation,
        token=options.token,
        host=options.host,
    )
    return server, _loaded(server, _read_by(files.reader), held.digests, origins)


def take_experts(server: ExpertServer, options: ActorOptions, order: ExpertOrder, note: Note) -> Taken:
    """Take more into an expert actor that serves, on the caller's thread."""
    _, origins = _take(server.held, options, order, note)
    return Taken(digests={pair: server.digests[pair] for pair in order.pairs}, origins=origins)


def _take(held: HeldExperts, options: ActorOptions, order: ExpertOrder, note: Note) -> tuple[Files, str]:
    """The files, opened if they were needed, and who had what. Raises CheckpointError."""
    taker = Taker(
        actor_id=options.actor_id,
        incarnation=options.incarnation,
        token=options.token,
        config=held.config,
        dtype=held.dtype,
        note=note,
    )
    files = _files(options, held, order, note)
    with peers_of(order, taker) as peers:
        sources: list[Source] = [*peers, files] if options.weights_from == "peers" else [files, *peers]
        return files, str(load_experts(held, sources, order.pairs))


def build_attention(
    options: ActorOptions, attention: AttentionOptions, view: View | None, checksum: str, note: Note
) -> tuple[AttentionServer, Loaded]:
    """Load everything but the routed experts (or those too, when local) and bind.

    view: where the experts are; None when local. checksum: of what others have read, if any have.
    """
    views, stopping = ViewInbox(), threading.Event()
    limits = SchedulerLimits(
        max_sequences=attention.max_sequences,
        chunk_tokens=attention.chunk_tokens,
        max_queue=attention.max_queue,
        max_step_tokens=attention.max_sequences * (1 + options.draft_tokens) + 2 * attention.chunk_tokens,
    )
    runner: StepRunner
    if options.device == "cuda":
        from actors.build_gpu import build_gpu_runner  # late: it takes Triton, which a CPU can do without

        runner, config, read = build_gpu_runner(options, attention, limits, note)
    else:
        runner, config, read = _build_cpu_runner(options, attention, view, note, views, stopping)
    if read.checksum != (checksum or read.checksum):
        raise CheckpointError(
            "what an attention actor reads is not what was read before: a shard has changed or is damaged; "
            "put back the files that this cluster was started with"
        )
    engine = Engine(
        runner,
        context_tokens=attention.context_tokens,
        limits=limits,
        prefix_cache=attention.prefix_cache,
    )
    server = AttentionServer(
        engine,
        views=views,
        stopping=stopping,
        actor_id=options.actor_id,
        incarnation=options.incarnation,
        token=options.token,
        host=options.host,
        grammars=_grammars(Path(options.directory), config),
        maker=f"{read.checksum} {options.dtype} {options.draft_tokens > 0}",
    )
    return server, _loaded(server, read)


def _build_cpu_runner(
    options: ActorOptions,
    attention: AttentionOptions,
    view: View | None,
    note: Note,
    views: ViewInbox,
    stopping: threading.Event,
) -> tuple[Runner, ModelConfig, WeightsRead]:
    _check_compiled(options)
    if attention.threads == 2:
        helper().start()
    checkpoint = Checkpoint.open(Path(options.directory))
    config = checkpoint.config_to_serve(options.draft_tokens)
    names = [*attention_tensors(config), *mtp_attention_tensors(config)]
    if attention.local:
        names += _expert_names(config, in_every_layer(config, range(config.num_experts)))
    reader = checkpoint.reader(note, total_names=names)
    decoder = load_decoder(reader, config, DTYPES[options.dtype], attention.context_tokens)
    if attention.local:
        exchange = local_exchange(reader, config, DTYPES[options.dtype], options.actor_id)
    else:
        assert view is not None, "only a local attention actor can do without a view"
        exchange = Exchange(
            TcpTransport(token=options.token, actor=options.actor_id, incarnation=options.incarnation),
            view,
            next_view=views.newest,
            should_stop=stopping.is_set,
            answer_timeout_s=attention.answer_timeout_s,
        )
    assert attention.cache_tokens is not None, "only a GPU is asked how much it has room for"
    runner = Runner(
        decoder,
        exchange,
        num_pages=attention.cache_tokens // PAGE_TOKENS + 1,
        draft_tokens=options.draft_tokens,
        micro_batches=1 if attention.local else attention.micro_batches,  # local: there is nothing to hide
    )
    return runner, config, _read_by(reader)


def local_exchange(reader: Reader, config: ModelConfig, dtype: torch.dtype, actor_id: str) -> Exchange:
    """An exchange whose experts, all of them, live in this process under the name actor_id."""
    held = HeldExperts(config, dtype)
    load_experts(held, [Files(lambda: reader, dtype)], in_every_layer(config, range(config.num_experts)))
    return loopback_exchange(config, actor_id, held.forward)


def _grammars(directory: Path, config: ModelConfig) -> Grammars | None:
    """None: a checkpoint of weights alone, as tests have, makes only free text."""
    if not (directory / "tokenizer.json").exists():
        return None
    return Grammars(directory, vocab_size=config.vocab_size, end_ids=config.eos_token_ids)


def _files(options: ActorOptions, held: HeldExperts, order: ExpertOrder, note: Note) -> Files:
    def open_reader() -> WeightReader:
        checkpoint = Checkpoint.open(Path(options.directory))
        for pair in order.pairs:
            checkpoint.check(expert_tensors(held.config, *pair))
        return checkpoint.reader(note, total_names=_expert_names(held.config, order.pairs))

    return Files(open_reader, held.dtype, order.known)


def _check_compiled(options: ActorOptions) -> None:
    """A CPU computes by the same loops in every actor, or its bits would not be the others'."""
    if not IS_COMPILED:
        raise ConfigError(
            f"{options.actor_id}: numba is missing, without which a CPU's norms, activations and gates have "
            "other bits than the other actors'; install Shoal with its dependencies (pip install numba)"
        )


def _expert_names(config: ModelConfig, pairs: Iterable[Pair]) -> list[str]:
    return [name for layer, expert in pairs for name in expert_tensors(config, layer, expert)]


def _read_by(reader: Reader | None) -> WeightsRead:
    if not isinstance(reader, WeightReader):
        return WeightsRead(bytes_read=0, checksum="")
    return WeightsRead(bytes_read=reader.bytes_read, checksum=reader.checksum())


def _loaded(
    server: AttentionServer | ExpertServer,
    read: WeightsRead,
    digests: Mapping[Pair, int] = NOTHING_KNOWN,
    origins: str = "",
) -> Loaded:
    metrics = MetricsServer(server.samples, server.host)  # lives as long as the process
    return Loaded(
        host=server.host,
        port=server.port,
        metrics_port=metrics.port,
        pid=os.getpid(),
        bytes_read=read.bytes_read,
        checksum=read.checksum,
        digests=dict(digests),
        origins=origins,
    )
