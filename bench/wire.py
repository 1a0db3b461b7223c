"""What a remote expert costs: one decode step's layers, by the clock in both processes.

`python -m bench.wire [--tokens N]`: one sequence, the bench checkpoint, an engine here and every expert in
one process over TCP, both timed from outside with the clock that processes of one machine share. Prints
medians in microseconds a layer, prefill included. Knows nothing of HTTP and of Ray.
"""

from __future__ import annotations

import functools
import multiprocessing
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from actors.build import build_expert
from actors.engine import Engine
from actors.expert import in_every_layer
from actors.options import ActorOptions
from bench.local import local_engine
from bench.report import stdout_console
from bench.timing import make_prompts
from cluster.preflight import write_checkpoint
from cluster.spec import cache_directory
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.load import load_decoder
from model.sampling import Sampling
from router.exchange import Exchange
from router.tcp import TcpTransport
from router.view import ActorId, ExpertActor, make_view

PRESET, TOKEN, ACTOR = "bench", b"a token for the bench", "expert-0"
PROMPT_TOKENS, CONTEXT_TOKENS = 64, 1024
Marks = list[tuple[float, str]]
# From mark to mark, what happens between them; the rest of a layer is the attention actor's own work.
STAGES = {
    ("post", "posted"): "pack and send the parcel",
    ("posted", "arrived"): "until the expert has its frame",
    ("arrived", "compute"): "unpack and check",
    ("compute", "computed"): "experts",
    ("computed", "reply"): "pack the reply",
    ("reply", "replied"): "send it",
    ("replied", "returned"): "until the attention actor has it",
}


def marked(function: Callable[..., Any], marks: Marks, before: str, after: str) -> Callable[..., Any]:
    """`function`, noting when it starts and ends; an empty name is not noted."""

    @functools.wraps(function)
    def timed(*args: Any, **named: Any) -> Any:
        if before:
            marks.append((time.perf_counter(), before))
        result = function(*args, **named)
        if after:
            marks.append((time.perf_counter(), after))
        return result

    return timed


def main(tokens: Annotated[int, typer.Option(min=8, help="new tokens of the one sequence")] = 48) -> None:
    """Print where a layer's time goes when its experts are another process."""
    torch.set_num_threads(1)
    directory = cache_directory() / f"{PRESET}-wire"
    write_checkpoint(directory, PRESET, seed=0)
    checkpoint = Checkpoint.open(directory)
    engine = local_engine(checkpoint, context_tokens=CONTEXT_TOKENS, num_sequences=1)
    local = _milliseconds(engine, tokens)
    marks: Marks = []
    with _expert_process(directory) as (port, answered):
        remote = _milliseconds(_remote_engine(checkpoint, port, marks), tokens)
        everything = sorted(marks + answered())
    console = stdout_console()
    table = Table("between", "median us", "of", title="One layer over TCP")
    for (before, after), name in STAGES.items():
        found = _between(everything, before, after)
        table.add_row(name, f"{median(found):.0f}" if found else "-", str(len(found)))
    console.print(table)
    console.print(f"a token: {local:.1f} ms with local experts, {remote:.1f} ms over TCP")


def _between(marks: Marks, before: str, after: str) -> list[float]:
    """Microseconds from each `before` to the mark that follows it, where that is `after`."""
    gaps: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (start_s, one), (end_s, other) in pairwise(marks):
        gaps[one, other].append((end_s - start_s) * 1e6)
    return gaps[before, after]


def _milliseconds(engine: Engine, tokens: int) -> float:
    """Per token of one sequence, the second time."""
    prompt = make_prompts("wire", count=1, num_tokens=PROMPT_TOKENS)[0]
    sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    seconds = 0.0
    for attempt in ("warm", "timed"):
        engine.submit("bench", attempt, prompt, [], sampling)
        start_s = time.perf_counter()
        while engine.has_work:
            engine.step()
        seconds = time.perf_counter() - start_s
    return seconds / tokens * 1e3


def _remote_engine(checkpoint: Checkpoint, port: int, marks: Marks) -> Engine:
    config = checkpoint.config_to_serve(draft_tokens=0)
    actor = ExpertActor(actor_id=ActorId(ACTOR), incarnation=1, host="127.0.0.1", port=port)
    view = make_view(
        1,
        [actor],
        {actor.actor_id: range(config.num_experts)},
        num_experts=config.num_experts,
        first_layer=config.num_dense_layers,
        num_layers=config.num_moe_layers,
    )
    transport: Any = TcpTransport(token=TOKEN, actor="attention-0", incarnation=1)
    transport.post = marked(transport.post, marks, "post", "posted")
    transport.poll = marked(transport.poll, marks, "", "returned")
    decoder = load_decoder(checkpoint.reader(), config, torch.float32, CONTEXT_TOKENS)
    num_pages = 2 + CONTEXT_TOKENS // PAGE_TOKENS
    return Engine(decoder, Exchange(transport, view), num_pages=num_pages, context_tokens=CONTEXT_TOKENS)


@contextmanager
def _expert_process(directory: Path) -> Iterator[tuple[int, Callable[[], Marks]]]:
    """Its port, and a way to end it that returns its marks."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(directory, theirs), daemon=True)
    process.start()

    def answered() -> Marks:
        ours.send("end")
        marks: Marks = ours.recv()
        return marks

    try:
        yield ours.recv(), answered
    finally:
        process.kill()
        process.join()


def _serve(directory: Path, pipe: Connection) -> None:
    """The expert process: every expert of the checkpoint until told to end."""
    torch.set_num_threads(1)
    config = Checkpoint.open(directory).config
    options = ActorOptions(
        actor_id=ACTOR,
        incarnation=1,
        directory=str(directory),
        dtype="float32",
        host="127.0.0.1",
        token=TOKEN,
        draft_tokens=0,
    )
    built, loaded = build_expert(
        options, in_every_layer(config, range(config.num_experts)), lambda progress: None
    )
    server: Any = built
    marks: Marks = []
    server._listener.poll = marked(server._listener.poll, marks, "", "arrived")
    server._listener.send = marked(server._listener.send, marks, "reply", "replied")
    server._held.forward = marked(server._held.forward, marks, "compute", "computed")
    threading.Thread(target=server.run, daemon=True).start()
    pipe.send(loaded.port)
    pipe.recv()
    pipe.send(list(marks))


if __name__ == "__main__":
    typer.run(main)
