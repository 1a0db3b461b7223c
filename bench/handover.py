"""How long a long stream waits when its attention actor leaves: pages handed over, or computed again.

    python -m bench.handover

Two attention actors of the embedded model in processes of their own (experts local), an ingress engine in
this one. Each round drains a stream twice, with a fresh salt each: its actor is told to hand over, or is gone
from the list at once, as all were before there was a hand-over. The two ways take turns, so do the actors.
Knows nothing of HTTP and of Ray.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from random import Random
from typing import Annotated

import torch
import typer
from rich.table import Table

from actors.messages import Terms
from bench.local import embedded_actor
from bench.report import stdout_console
from ingress.engine_client import Call, EngineClient
from ingress.link import Endpoint
from model.sampling import Sampling

TOKEN = b"a token of this run alone"
CONTEXT = 4096
MAX_TOKENS, SAID = 96, 32  # of the answer; when the actor leaves
HANDED, AGAIN = "handed over", "computed again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """One drained stream: its longest wait after the order, and its tokens."""

    gap_s: float
    tokens: tuple[int, ...]


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    prompt_tokens: Annotated[int, typer.Option(min=64, max=CONTEXT - MAX_TOKENS)] = 3968,
) -> None:
    """Measure and print the longest gap of a drained stream, both ways."""
    generator = Random(0)
    prompt = [generator.randrange(16, 1024) for _ in range(prompt_tokens)]
    with _actors() as endpoints:
        streams = asyncio.run(_measure(endpoints, prompt, rounds))
    stdout_console().print(_table(streams, prompt_tokens))
    if len({stream.tokens for own in streams.values() for stream in own}) != 1:
        raise SystemExit("the tokens differ")


async def _measure(
    endpoints: Sequence[Endpoint], prompt: Sequence[int], rounds: int
) -> dict[str, list[Stream]]:
    streams: dict[str, list[Stream]] = {HANDED: [], AGAIN: []}
    salts = itertools.count()
    for number in range(rounds):
        for way in (HANDED, AGAIN) if number % 2 else (AGAIN, HANDED):
            salt = next(salts)
            leaver, heir = endpoints if salt // 2 % 2 else endpoints[::-1]
            after = [replace(leaver, draining=True), heir] if way == HANDED else [heir]
            streams[way].append(await _drained(leaver, after, prompt, f"{salt}"))
    return streams


async def _drained(leaver: Endpoint, after: Sequence[Endpoint], prompt: Sequence[int], salt: str) -> Stream:
    engine = EngineClient([leaver], token=TOKEN, identity="bench")
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True)
    tokens: list[int] = []
    gap_s, heard_s = 0.0, time.monotonic()
    async for event in engine.generate(f"r{salt}", prompt, sampling, Call(terms=Terms(cache_salt=salt))):
        if not event.token_ids:
            continue
        now_s = time.monotonic()
        if len(tokens) >= SAID:
            gap_s = max(gap_s, now_s - heard_s)
        is_time = len(tokens) < SAID <= len(tokens) + len(event.token_ids)
        tokens += event.token_ids
        heard_s = now_s
        if is_time:
            engine.update(after)
    await engine.close()
    return Stream(gap_s=gap_s, tokens=tuple(tokens))


@contextmanager
def _actors() -> Iterator[list[Endpoint]]:
    """Two, while the block runs."""
    spawn = multiprocessing.get_context("spawn")
    processes, endpoints = [], []
    try:
        for name in ("attention-0", "attention-1"):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(name, theirs), daemon=True)
            process.start()
            processes.append(process)
            endpoints.append(Endpoint(actor_id=name, host="127.0.0.1", port=int(ours.recv_bytes())))
        yield endpoints
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(name: str, port: Connection) -> None:
    torch.set_num_threads(1)
    server, loaded = embedded_actor(name, TOKEN, context_tokens=CONTEXT, cache_tokens=16 * CONTEXT)
    port.send_bytes(str(loaded.port).encode())
    server.run()


def _table(streams: dict[str, list[Stream]], prompt_tokens: int) -> Table:
    shown = Table("way", "longest gap, median", "least", "most", title=f"{prompt_tokens} tokens before it")
    for way, own in streams.items():
        gaps_s = [stream.gap_s for stream in own]
        shown.add_row(way, *(f"{f(gaps_s):.3f} s" for f in (statistics.median, min, max)))
    return shown


if __name__ == "__main__":
    typer.run(main)
