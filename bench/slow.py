"""A good client beside connections that say nothing.

`python -m bench.slow URL`: how long a short request takes alone and beside a thousand connections that have
sent a part of a head, in turns, so that what else the machine does falls on both alike. Knows nothing of the
server but its address.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import quantiles
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import typer

PART = b"GET /health HTTP/1.1\r\nhost: x\r\n"
RENEW_S = 5.0  # before the server gives them up
KEY_VARIABLE = "SHOAL_API_KEY"


def main(
    url: Annotated[str, typer.Argument(help="Of a server, as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="The served model.")] = "shoal-demo",
    connections: Annotated[int, typer.Option(help="That say nothing.")] = 1000,
    rounds: Annotated[int, typer.Option(help="Of one turn each.")] = 6,
    requests: Annotated[int, typer.Option(help="In a turn.")] = 20,
) -> None:
    """Prints one line of JSON: medians, 99th percentiles and their ratios."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, connections + 256), most))
    alone, beside = asyncio.run(_measure(url, model, connections, rounds, requests))
    print(json.dumps({"connections": connections, **_compared(alone, beside)}))


async def _measure(
    url: str, model: str, connections: int, rounds: int, requests: int
) -> tuple[list[float], list[float]]:
    alone: list[float] = []
    beside: list[float] = []
    headers = {"authorization": f"Bearer {os.environ.get(KEY_VARIABLE, 'none')}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60.0) as client:
        await _ask(client, model)
        for _ in range(rounds):
            alone += [await _ask(client, model) for _ in range(requests)]
            async with _slow(url, connections):
                beside += [await _ask(client, model) for _ in range(requests)]
    return alone, beside


async def _ask(client: httpx.AsyncClient, model: str) -> float:
    """Seconds of one short completion."""
    began_s = time.perf_counter()
    body = {"model": model, "prompt": "17 + 25", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    (await client.post("/v1/completions", json=body)).raise_for_status()
    return time.perf_counter() - began_s


@asynccontextmanager
async def _slow(url: str, count: int) -> AsyncIterator[None]:
    """So many connections in the middle of a head, made anew as the server gives them up."""
    place = urlsplit(url)
    writers: list[asyncio.StreamWriter] = []

    async def open_all() -> None:
        for _ in range(count):
            _, writer = await asyncio.open_connection(place.hostname, place.port)
            writer.write(PART)
            writers.append(writer)

    async def renew() -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            _close(writers)
            await open_all()

    await open_all()
    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        _close(writers)


def _close(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        writer.transport.abort()
    writers.clear()


def _compared(alone: list[float], beside: list[float]) -> dict[str, float]:
    told: dict[str, float] = {}
    for name, place in (("median", 49), ("p99", 98)):
        without, amid = quantiles(alone, n=100)[place], quantiles(beside, n=100)[place]
        told |= {f"{name}_s": round(without, 4), f"{name}_beside_s": round(amid, 4)}
        told[f"{name}_ratio"] = round(amid / without, 2)
    return told


if __name__ == "__main__":
    typer.run(main)
