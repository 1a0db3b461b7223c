"""What the prefix cache gains where prompts begin alike, and costs where they do not.

    python -m bench.prefix

Time to the first token of a long prompt whose beginning is cached, against the same without a hit, in turns
so that a noisy minute meets both; another salt keeps a prompt from the cached pages. First the engine alone,
experts local, and its prompts that nobody has seen with the cache on and off, in CPU time, which a neighbour
hardly changes; then `shoal serve` over HTTP. Knows nothing of what is in the pages.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated

import httpx
import torch
import typer
from rich.table import Table

from actors.build import local_exchange
from actors.engine import Engine
from actors.messages import Terms
from actors.runner import Runner
from bench.report import stdout_console
from bench.server import serving
from bench.timing import Prompt, make_prompts
from cluster.embedded import embedded_directory
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.load import load_decoder
from model.sampling import Sampling

PATIENCE_S = 120.0
FIRST = Sampling(max_tokens=1, temperature=0.0)

Asking = Callable[[Prompt, str], float]


def main(
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the embedded model.")] = None,
    shared_tokens: Annotated[int, typer.Option(help="Tokens that every prompt begins with.")] = 4000,
    own_tokens: Annotated[int, typer.Option(help="Tokens after those, of its own.")] = 32,
    rounds: Annotated[int, typer.Option(help="Pairs of prompts, interleaved.")] = 5,
    http: Annotated[bool, typer.Option("--http/--no-http", help="The whole way, too.")] = True,
) -> None:
    """Print milliseconds to the first token and the ratios."""
    torch.set_num_threads(1)
    directory = checkpoint or embedded_directory()
    [shared] = make_prompts("shared", count=1, num_tokens=shared_tokens)
    prompts = [[*shared, *own] for own in make_prompts("own", count=2 * rounds + 1, num_tokens=own_tokens)]
    console = stdout_console()
    context_tokens = len(prompts[0]) + PAGE_TOKENS
    cached, plain = (make_engine(directory, context_tokens, prefix_cache=on) for on in (True, False))
    sides = ("no hit ms", "hit ms")
    console.print(_table("engine", sides, compare(lambda *asked: _timed(cached, *asked)[0], prompts)))
    strangers = make_prompts("strangers", count=rounds, num_tokens=len(prompts[0]))
    sides_of_cost = ("cache off ms", "cache on ms")
    console.print(_table("engine, never seen, CPU time", sides_of_cost, _costs(plain, cached, strangers)))
    if http:
        with _served(directory) as ask:
            console.print(_table("over HTTP", sides, compare(ask, prompts)))


def make_engine(directory: Path, context_tokens: int, *, prefix_cache: bool) -> Engine:
    """With every expert in it, drafts as they are served by default, and room for two prompts."""
    checkpoint = Checkpoint.open(directory)
    draft_tokens = 1 if checkpoint.config.num_mtp_layers else 0
    config, reader = checkpoint.config_to_serve(draft_tokens), checkpoint.reader()
    runner = Runner(
        load_decoder(reader, config, torch.float32, context_tokens),
        local_exchange(reader, config, torch.float32, "local"),
        num_pages=2 + 2 * context_tokens // PAGE_TOKENS,
        draft_tokens=draft_tokens,
    )
    return Engine(runner, context_tokens=context_tokens, prefix_cache=prefix_cache)


def compare(ask: Asking, prompts: list[Prompt]) -> list[tuple[float, float]]:
    """(seconds without a hit, with one), pair by pair; the first prompt warms the cache."""
    ask(prompts[0], "shared")
    pairs = zip(prompts[1::2], prompts[2::2], strict=True)
    return [
        (ask(stranger, f"round {number}"), ask(friend, "shared"))
        for number, (stranger, friend) in enumerate(pairs)
    ]


def _timed(engine: Engine, prompt: Prompt, salt: str = "") -> tuple[float, float]:
    """Seconds to the first token, by the clock and of CPU."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    engine.submit("bench", "r", prompt, [], FIRST, Terms(cache_salt=salt))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start_s, time.process_time() - start_cpu_s


@contextmanager
def _served(directory: Path) -> Iterator[Asking]:
    """`shoal serve` as it comes."""
    with (
        serving(directory, ()) as server,
        server.awake(),
        httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client,
    ):
        model = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]
        yield lambda prompt, salt: _first_event_s(client, model, prompt, salt)


def _first_event_s(client: httpx.Client, model: str, prompt: Prompt, salt: str) -> float:
    """Seconds to the first event of a stream, which holds a token."""
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    start_s = time.perf_counter()
    with client.stream(
        "POST", "/v1/completions", json={**body, "cache_salt": salt, "stream": True}
    ) as answer:
        answer.raise_for_status()
        data = next(line for line in answer.iter_lines() if line.startswith("data: "))
        took_s = time.perf_counter() - start_s
        event = json.loads(data.removeprefix("data: "))
        assert event["choices"][0]["token_ids"], f"a token was expected, not {data[:300]}"
    return took_s


def _costs(plain: Engine, cached: Engine, prompts: list[Prompt]) -> list[tuple[float, float]]:
    """CPU seconds of both; who goes first changes with every prompt."""
    pairs = []
    for number, prompt in enumerate(prompts):
        order = (plain, cached) if number % 2 else (cached, plain)
        took = {engine: _timed(engine, prompt)[1] for engine in order}
        pairs.append((took[plain], took[cached]))
    return pairs


def _table(title: str, sides: tuple[str, str], pairs: list[tuple[float, float]]) -> Table:
    """Medians of both sides in ms, that of the ratios, and every ratio."""
    table = Table(*sides, "ratio", "rounds", title=title, title_justify="left")
    ratios = [one / other for one, other in pairs]
    medians = [f"{median(pair[side] for pair in pairs) * 1e3:.0f}" for side in (0, 1)]
    rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    table.add_row(*medians, f"{median(ratios):.2f}", rounds)
    return table


if __name__ == "__main__":
    typer.run(main)
