"""Twice what it can serve, for as long as you like.

`python -m bench.soak --minutes 10`, or `make soak`: a cluster as `shoal serve` starts it, its capacity
measured by a closed loop, then Poisson arrivals at a multiple of that, from three API keys, a fifth of them
batch, with mixed lengths. Counts who was let in, refused and failed, how long the queue grew, and what memory
each process held. Exits with 1 where a promise is broken.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import psutil
import typer
from rich.console import Group
from rich.table import Table

from bench.report import stdout_console
from bench.server import free_port
from bench.timing import make_prompts
from cluster.api_client import DONE, events_in
from cluster.environment import ray_environment
from cluster.spec import ShoalSpec

if TYPE_CHECKING:
    from cluster.running import Cluster

KEYS = ("sk-a", "sk-a", "sk-b", "sk-c")  # one asks for twice as much as the others
BATCH_SHARE = 0.2
PROMPT_TOKENS = (16, 64, 256, 1024)
NEW_TOKENS = (8, 32, 128)
CLOSED_LOOP = 48
SAMPLE_S = 2.0
PATIENCE_S = 600.0
FLAT = 0.02
TOLD = re.compile(r"try again in (\d+) s$")
STATUS_OF = {"rate_limit_exceeded": 429, "overloaded": 503, "deadline_exceeded": 504}  # by an error's code
MAX_SHOWN = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Of one request. status 0: the connection failed. retry_after_s: None where it was not told."""

    status: int
    key: str
    is_batch: bool
    seconds: float
    num_tokens: int = 0
    wanted_tokens: int = 0
    retry_after_s: int | None = None
    error: str | None = None

    @property
    def is_refused(self) -> bool:
        return self.status in (429, 503)

    @property
    def is_served(self) -> bool:
        return self.status == 200 and self.num_tokens == self.wanted_tokens and self.error is None


@dataclass(slots=True)
class Watch:
    """Queue and memory over the run. rss_mb: by process id, in order of time."""

    queue: list[int] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    rss_mb: dict[int, list[float]] = field(default_factory=dict)

    def sample(self, cluster: Cluster) -> None:
        stats = cluster.stats()
        self.queue.append(int(sum(own.get("waiting", 0) for own in stats.values())))
        for process in psutil.Process().children(recursive=True):
            try:
                name = process.cmdline()[0].split("/")[-1]
                self.names.setdefault(process.pid, name.partition(".")[0].strip())
                self.rss_mb.setdefault(process.pid, []).append(process.memory_info().rss / 1e6)
            except (psutil.NoSuchProcess, IndexError):
                continue


def main(
    minutes: float = 10.0,
    load: Annotated[float, typer.Option(help="Arrivals, to the measured capacity.")] = 2.0,
    experts: int = 2,
    max_queue_s: Annotated[float, typer.Option(help="As of `shoal serve`.")] = 10.0,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the embedded model.")] = None,
    calibrate_s: float = 30.0,
    seed: int = 0,
) -> None:
    """Run it and print what happened."""
    model = None if checkpoint is None else str(checkpoint)
    spec = ShoalSpec.from_sources(
        None, {"model": model, "experts": experts, "port": free_port(), "max_queue_s": max_queue_s}
    )
    with ray_environment():
        from cluster.launch import launch, shut_down
        from cluster.preflight import examine

        cluster = launch(spec, examine(spec))
        try:
            capacity, outcomes, watch = asyncio.run(
                _soak(cluster, minutes * 60, load, calibrate_s, random.Random(seed))
            )
        finally:
            shut_down(cluster)
    stdout_console().print(Group(_summary(capacity, load, minutes, outcomes, watch), _memory(watch)))
    if any(not (one.is_served or one.is_refused) or _untold(one) for one in outcomes):
        raise typer.Exit(1)


async def _soak(
    cluster: Cluster, seconds: float, load: float, calibrate_s: float, generator: random.Random
) -> tuple[float, list[Outcome], Watch]:
    """(requests per second in a closed loop, outcomes of the open loop, what was watched meanwhile)."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(
        base_url=cluster.url, timeout=PATIENCE_S, limits=limits, trust_env=False
    ) as client:
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]

        async def one() -> Outcome:
            return await request(client, *_made_up(model, generator))

        capacity = await _closed_loop(one, calibrate_s)
        watch = Watch()
        watching = asyncio.create_task(_watch(cluster, watch))
        outcomes = await _open_loop(one, seconds, capacity * load, generator)
        if watching.done():
            watching.result()  # it ended before its time: why
        watching.cancel()
    return capacity, outcomes, watch


async def _closed_loop(one: Callable[[], Awaitable[Outcome]], seconds: float) -> float:
    """Served requests per second with CLOSED_LOOP always under way; the first third does not count."""
    start_s, end_s = time.monotonic() + seconds / 3, time.monotonic() + seconds
    num_served = 0

    async def ask() -> None:
        nonlocal num_served
        while time.monotonic() < end_s:
            outcome = await one()
            num_served += outcome.is_served and start_s <= time.monotonic() < end_s
            if outcome.is_refused:
                await asyncio.sleep(1.0)

    await asyncio.gather(*(ask() for _ in range(CLOSED_LOOP)))
    if not num_served:
        raise typer.BadParameter(f"nothing was served in {seconds:g} s: calibrate for longer")
    return num_served / (end_s - start_s)


async def _open_loop(
    one: Callable[[], Awaitable[Outcome]], seconds: float, rate: float, generator: random.Random
) -> list[Outcome]:
    """Arrivals that wait for nobody; then everybody's end."""
    end_s, next_s = time.monotonic() + seconds, time.monotonic()
    asked: list[asyncio.Future[Outcome]] = []
    while next_s < end_s:
        await asyncio.sleep(max(0.0, next_s - time.monotonic()))
        asked.append(asyncio.ensure_future(one()))
        next_s += generator.expovariate(rate)
    return list(await asyncio.gather(*asked))


async def _watch(cluster: Cluster, watch: Watch) -> None:
    while True:
        await asyncio.to_thread(watch.sample, cluster)
        await asyncio.sleep(SAMPLE_S)


def _made_up(model: str, generator: random.Random) -> tuple[dict[str, Any], str]:
    """A body and a key."""
    num_prompt, num_new = generator.choice(PROMPT_TOKENS), generator.choice(NEW_TOKENS)
    [prompt] = make_prompts(str(generator.random()), count=1, num_tokens=num_prompt)
    tier = {"service_tier": "flex"} if generator.random() < BATCH_SHARE else {}
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": num_new,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        **tier,
    }
    return body, generator.choice(KEYS)


async def request(client: httpx.AsyncClient, body: dict[str, Any], key: str) -> Outcome:
    """Ask, and read the answer to its end, whichever that is."""
    start_s, num_tokens = time.monotonic(), 0
    status, headers, error = 0, httpx.Headers(), None
    try:
        async with client.stream(
            "POST", "/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}
        ) as response:
            status, headers = response.status_code, response.headers
            if status != httpx.codes.OK:
                error = _message_in(await response.aread()) or f"HTTP {status}: {response.text[:MAX_SHOWN]}"
            else:
                num_tokens, status, error = await _read_stream(response)
    except httpx.HTTPError as failure:
        error = f"{type(failure).__name__}: {failure}"
    told = TOLD.search(error or "")
    retry_after = headers.get("retry-after") or (told.group(1) if told else None)
    return Outcome(
        status=status,
        key=key,
        is_batch="service_tier" in body,
        seconds=time.monotonic() - start_s,
        num_tokens=num_tokens,
        wanted_tokens=body["max_tokens"],
        retry_after_s=int(retry_after) if retry_after else None,
        error=error,
    )


async def _read_stream(response: httpx.Response) -> tuple[int, int, str | None]:
    """(tokens, status, error); an error that came after keep-alives has the status that it would have had."""
    num_tokens, failure, is_whole, buffer = 0, None, False, bytearray()
    async for part in response.aiter_raw():
        buffer += part
        for data in events_in(buffer):
            is_whole = data == DONE
            event = {} if is_whole else json.loads(data)
            num_tokens += sum(len(choice.get("token_ids", ())) for choice in event.get("choices", ()))
            failure = event.get("error", failure)
    if failure is not None:
        return num_tokens, STATUS_OF.get(failure["code"], response.status_code), failure["message"]
    return num_tokens, response.status_code, None if is_whole else "the stream broke off"


def _message_in(body: bytes) -> str | None:
    """The words of an error of ours; None if it is somebody else's, such as a proxy's page."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(message)


def _untold(one: Outcome) -> bool:
    return one.is_refused and one.retry_after_s is None


def _summary(capacity: float, load: float, minutes: float, outcomes: list[Outcome], watch: Watch) -> Table:
    served = [one for one in outcomes if one.is_served]
    refused = [one for one in outcomes if one.is_refused]
    failed = [one for one in outcomes if not (one.is_served or one.is_refused)]
    told = [one.retry_after_s for one in refused if one.retry_after_s is not None]
    title = f"{minutes:g} min at {load:g} x {capacity:.2f} requests/s; spreads are least / median / most"
    table = Table("what", "figure", title=title)
    table.add_row("asked", str(len(outcomes)))
    table.add_row("admitted and finished", f"{len(served)}, by key {_by_key(served)}")
    for is_batch, name in ((False, "interactive"), (True, "batch")):
        asked, done = ([one for one in some if one.is_batch is is_batch] for some in (outcomes, served))
        seconds = _spread([one.seconds for one in done])
        table.add_row(f"{name}: asked, served, their seconds", f"{len(asked)}, {len(done)}, {seconds}")
    table.add_row("refused", f"{len(refused)}, by status {dict(Counter(one.status for one in refused))}")
    table.add_row("refused without a time to come back", str(sum(map(_untold, refused))))
    table.add_row("Retry-After s", _spread(told))
    table.add_row("failed", f"{len(failed)} {sorted({str(one.error) for one in failed})[:3]}")
    table.add_row("tokens", str(sum(one.num_tokens for one in served)))
    table.add_row("queue", _spread(watch.queue))
    return table


def _memory(watch: Watch) -> Table:
    """A fifth of the run warms up; flat is the second half of the rest beside the first."""
    table = Table("process", "RSS MB at start", "after warm-up", "peak", "end", "drift", "flat")
    for pid, values in sorted(watch.rss_mb.items(), key=lambda item: watch.names[item[0]]):
        steady = values[len(values) // 5 :]
        middle = len(steady) // 2
        if not middle:
            continue
        drift = statistics.mean(steady[middle:]) / statistics.mean(steady[:middle]) - 1
        shown = (values[0], steady[0], max(values), values[-1])
        flat = "yes" if abs(drift) <= FLAT else "NO"
        table.add_row(watch.names[pid], *(f"{mb:.1f}" for mb in shown), f"{drift:+.2%}", flat)
    return table


def _by_key(outcomes: list[Outcome]) -> str:
    return ", ".join(f"{key} {count}" for key, count in sorted(Counter(one.key for one in outcomes).items()))


def _spread(values: list[int] | list[float]) -> str:
    if not values:
        return "none"
    return f"{min(values):.0f} / {statistics.median(values):.0f} / {max(values):.0f}"


if __name__ == "__main__":
    typer.run(main)
