"""Taking experts from a peer, beside the page cache.

    python -m bench.expert_sources

An expert actor in a process of its own holds a layer of experts; this process takes them all over, from it
and from the files in turns, while a third process asks the first for rows and notes how long each answer
takes. Knows nothing of Ray and HTTP.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from actors.build import build_expert
from actors.held import in_every_layer
from actors.options import ActorOptions, ExpertOrder
from bench.remote import TOKEN, other_process
from bench.report import stdout_console
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.expert_form import digest_of
from model.tiny import TinyShape, presets, write_tiny
from router.connection import connect
from router.dialogue import hear, say
from router.heartbeat import Beat
from router.parcels import Reply, pack_parcel
from router.transport import DispatchKey, Parcel
from router.view import ActorId, ExpertActor, make_view
from router.wire import kinds

EXPERTS, ROWS, PATIENCE_S = 16, 2, 60.0
NOBODY, FILES, PEER = "nothing", "files", "the peer"


def shape() -> TinyShape:
    """Half of V3.2's widths; little beside the experts."""
    return replace(presets()["test"], hidden=3584, moe_intermediate=1024, layers=2, experts=EXPERTS)


def main(rounds: Annotated[int, typer.Option(min=1)] = 5, dtype: str = "bfloat16") -> None:
    """Measure and print both ways, in turns."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_tiny(directory, preset=shape())
        config = Checkpoint.open(directory).config_to_serve(0)
        with (
            other_process(_serve, directory, config, dtype) as peer,
            other_process(_ask, config, dtype) as asker,
        ):
            life, known = peer.recv()
            asker.send(life)
            alone: dict[str, list[float]] = {FILES: [], PEER: []}
            beside: dict[str, list[tuple[float, Sequence[float]]]] = {NOBODY: [], FILES: [], PEER: []}
            for _ in range(rounds + 1):
                for what, seconds in alone.items():
                    seconds.append(_take(what, directory, config, dtype, life, known))
                for what, rows in beside.items():
                    asker.send(True)
                    taken_s = _take(what, directory, config, dtype, life, known)
                    asker.send(False)
                    rows.append((taken_s, asker.recv()))
            num_bytes, digest_s = _digest(directory, config, dtype)
    table = Table("taken from", "ms an expert", "peer busy", "answers", "median ms", "p99 ms")
    for what, rows in beside.items():
        answers_ms = 1e3 * np.concatenate([answers for _, answers in rows[1:]])
        p50, p99 = np.percentile(answers_ms, [50, 99])
        took = [_each_ms(alone[what]), _each_ms([s for s, _ in rows])] if what in alone else ["-", "-"]
        table.add_row(what, *took, str(len(answers_ms)), f"{p50:.1f}", f"{p99:.1f}")
    stdout_console().print(table)
    stdout_console().print(f"{num_bytes / 1e6:.1f} MB an expert; its digest takes {1e3 * digest_s:.1f} ms")


def _each_ms(seconds: Sequence[float]) -> str:
    """Median time of one expert, without the first round."""
    return f"{1e3 * float(np.median(seconds[1:])) / EXPERTS:.1f}"


def _take(
    what: str, directory: Path, config: ModelConfig, dtype: str, life: ExpertActor, known: dict[Any, int]
) -> float:
    """Seconds for all experts of the layer."""
    start_s = time.perf_counter()
    if what == NOBODY:
        time.sleep(1.0)
        return 1.0
    options = _options("taker", directory, dtype)
    options = replace(options, weights_from="files" if what == FILES else "peers")
    server, loaded = build_expert(options, config, _order(config, known, life), lambda progress: None)
    assert f"{EXPERTS} experts from {'expert-0' if what == PEER else 'files'}" in loaded.origins, (
        loaded.origins
    )
    seconds = time.perf_counter() - start_s
    server._listener.close()
    return seconds


def _order(config: ModelConfig, known: dict[Any, int], *lives: ExpertActor) -> ExpertOrder:
    experts = range(config.num_experts)
    view = make_view(
        1,
        lives,
        {life.actor_id: experts for life in lives},
        num_experts=config.num_experts,
        first_layer=config.num_dense_layers,
        num_layers=len(config.routed_layers),
    )
    return ExpertOrder(
        pairs=frozenset(in_every_layer(config, experts)), known=known, view=view.to_bytes() if lives else None
    )


def _options(name: str, directory: Path, dtype: str) -> ActorOptions:
    return ActorOptions(
        actor_id=name,
        incarnation=1,
        directory=str(directory),
        dtype=dtype,
        host="127.0.0.1",
        token=TOKEN,
        draft_tokens=0,
    )


def _serve(pipe: Connection, directory: Path, config: ModelConfig, dtype: str) -> None:
    torch.set_num_threads(1)
    order = _order(config, {})
    server, loaded = build_expert(
        _options("expert-0", directory, dtype), config, order, lambda progress: None
    )
    life = ExpertActor(actor_id=ActorId("expert-0"), incarnation=1, host=server.host, port=server.port)
    pipe.send((life, loaded.digests))
    server.run()


def _ask(pipe: Connection, config: ModelConfig, dtype: str) -> None:
    """While it is told to: a parcel of ROWS rows, two experts each, every 2 ms."""
    torch.set_num_threads(1)
    life = pipe.recv()
    connection = connect(
        life,
        token=TOKEN,
        actor="attention-0",
        incarnation=1,
        accepted=kinds(Reply, Beat),
        timeout_s=PATIENCE_S,
    )
    rows = torch.float32 if dtype == "int8" else getattr(torch, dtype)
    rows_RD = torch.randn(ROWS, config.hidden_size).to(rows)
    pairs = np.arange(2 * ROWS, dtype=np.int32)
    key = DispatchKey(epoch=1, step=1, layer=config.num_dense_layers, micro_batch=0, attempt=0)
    header, payload = pack_parcel(
        Parcel(key=key, rows_RD=rows_RD, row_P=pairs // 2, expert_P=pairs % config.num_experts)
    )
    exchange = partial(_exchange, connection, header, payload)
    while True:
        pipe.recv()
        answers = []
        while not pipe.poll():
            answers.append(exchange())
            time.sleep(0.002)
        pipe.recv()
        pipe.send(answers)


def _exchange(connection: Any, header: Any, payload: Sequence[memoryview]) -> float:
    start_s = time.perf_counter()
    say(connection, header, *payload, patience_s=PATIENCE_S)
    hear(connection, Reply, patience_s=PATIENCE_S)
    return time.perf_counter() - start_s


def _digest(directory: Path, config: ModelConfig, dtype: str) -> tuple[int, float]:
    """Bytes of an expert, and the seconds that its digest takes: best of five."""
    server, _ = build_expert(
        _options("once", directory, dtype), config, _order(config, {}), lambda progress: None
    )
    weights = server.held.weights(config.num_dense_layers, 0)
    assert weights is not None
    times = []
    for _ in range(5):
        start_s = time.perf_counter()
        digest_of(weights)
        times.append(time.perf_counter() - start_s)
    num_bytes = server.held.bytes_taken.total() // EXPERTS
    server._listener.close()
    return num_bytes, min(times)


if __name__ == "__main__":
    typer.run(main)
