"""`shoal doctor`.

Shows the findings of cluster/doctor.py. Knows nothing of what is checked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.cli_console import EXIT_FAILED, AsJson, fail, tell
from cluster.spec import ShoalSpec, SpecError

MARKS = {"good": "[green]ok[/]  ", "poor": "[yellow]poor[/]", "bad": "[bold red]bad[/] "}


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="As of `shoal serve`; default: the embedded one.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file as of `shoal serve`.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port that would be used.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, that would be used.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with this machine for Shoal, and how to mend it; exit code 1 if anything is bad."""
    from cluster.doctor import findings, worst

    try:
        spec = ShoalSpec.from_sources(config, {"model": model, "port": port, "device": device})
    except SpecError as error:
        fail(str(error))
    found, screen = [], Console(highlight=False)
    for one in findings(spec, os.environ):
        found.append(one)
        if not as_json:
            screen.print(f"{MARKS[one.state]} {one.name:<14}", end="")
            screen.print(one.text, markup=False, soft_wrap=True)
            if one.remedy:
                screen.print(f"{'':<19}-> {one.remedy}", markup=False, soft_wrap=True)
    if as_json:
        tell([one.told() for one in found])
    if worst(found) == "bad":
        raise typer.Exit(EXIT_FAILED)
