"""`shoal bench`.

A load against a running server, a bar while it lasts, figures at the end. Knows nothing of how a request is
timed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from cluster.cli_console import EXIT_FAILED, AsJson, console, fail, tell
from cluster.places import api_place

if TYPE_CHECKING:
    from cluster.bench_load import Result


def bench(
    url: Annotated[str | None, typer.Option(help="Of the server; default: the one that runs here.")] = None,
    key: Annotated[str | None, typer.Option(envvar="SHOAL_API_KEY", help="API key.")] = None,
    requests: Annotated[int, typer.Option(min=1, help="How many in all.")] = 64,
    concurrency: Annotated[int, typer.Option(min=1, help="At once.")] = 8,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="A second instead, at random moments (Poisson).")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Random tokens of each prompt.")] = 128,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to make for each.")] = 64,
    seed: Annotated[int, typer.Option(help="Of prompts and moments.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a running server: tokens/s, and percentiles of TTFT, TPOT and whole answers."""
    from cluster.api_client import ApiError, Place
    from cluster.bench_load import Load, run
    from cluster.bench_page import page

    load = Load(
        requests=requests,
        concurrency=concurrency,
        rate=rate,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        seed=seed,
    )
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=requests)
            result = run(Place(url=api_place(url), key=key or ""), load, lambda: bar.advance(task))
    except ApiError as error:
        fail(str(error))
    if html is not None:
        try:
            html.write_text(page(result), encoding="utf-8")
        except OSError as error:
            fail(f"{html} cannot be written: {error.strerror}")
    if as_json:
        tell(result.figures())
    else:
        _show(result)
    if len(result.answered) < requests:
        raise typer.Exit(EXIT_FAILED)


def _show(result: Result) -> None:
    figures, screen = result.figures(), Console(highlight=False)
    screen.print(f"{figures['tokens_per_s']:g} tokens/s, {figures['requests_per_s']:g} requests/s")
    table = Table("ms", *next(iter(figures["ms"].values())), box=None)
    for name, told in figures["ms"].items():
        table.add_row(name, *("-" if value is None else f"{value:g}" for value in told.values()))
    screen.print(table)
    for text, count in figures["failed"].items():
        screen.print(f"{count} failed: {text}", markup=False, soft_wrap=True)
