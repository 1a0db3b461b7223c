"""What a remote expert costs: one decode step's layers, by the clock in both processes.

`python -m bench.wire [--tokens N]`: one sequence, the bench checkpoint, an engine here and every expert in
one process over TCP, both timed from outside with the clock that processes of one machine share. Prints
medians in microseconds a layer, prefill included. Knows nothing of HTTP and of Ray.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from actors.engine import Engine
from bench.local import local_engine
from bench.remote import built_expert, other_process, remote_engine
from bench.report import stdout_console
from bench.timing import make_prompts
from cluster.random_model import write_checkpoint
from cluster.spec import cache_directory
from model.checkpoint import Checkpoint
from model.sampling import Sampling

PRESET = "bench"
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
    with other_process(_serve, directory) as pipe:
        distant, wire = remote_engine(checkpoint, [pipe.recv()], context_tokens=CONTEXT_TOKENS)
        transport: Any = wire
        transport.post = marked(transport.post, marks, "post", "posted")
        transport.poll = marked(transport.poll, marks, "", "returned")
        remote = _milliseconds(distant, tokens)
        pipe.send("end")
        everything = sorted(marks + pipe.recv())
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


def _serve(pipe: Connection, directory: Path) -> None:
    """The expert process: every expert of the checkpoint until told to end."""
    server, port = built_expert(directory, 0, of=1)
    marks: Marks = []
    server._listener.poll = marked(server._listener.poll, marks, "", "arrived")
    server._listener.send = marked(server._listener.send, marks, "reply", "replied")
    server._held.forward = marked(server._held.forward, marks, "compute", "computed")
    threading.Thread(target=server.run, daemon=True).start()
    pipe.send(port)
    pipe.recv()
    pipe.send(list(marks))


if __name__ == "__main__":
    typer.run(main)
