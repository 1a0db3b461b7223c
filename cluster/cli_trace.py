"""`shoal trace`: a few steps of a running cluster as a timeline.

Knows nothing of Ray: it asks the admin listener.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_console import AsJson, console, fail, tell


def trace(
    file: Annotated[Path, typer.Argument(help="Where to write; open it at https://ui.perfetto.dev.")],
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Of each attention actor.")] = 20,
    seconds: Annotated[float, typer.Option(min=0.01, max=60, help="At most.")] = 5.0,
    url: Annotated[str | None, typer.Option(help="Of the admin listener; default: the one here.")] = None,
    key: Annotated[str | None, typer.Option(envvar="SHOAL_ADMIN_KEY", help="Its key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record what happens when, in the next steps of every actor."""
    from cluster.places import NoAnswer, admin_place, ask

    try:
        found = ask(
            admin_place(url, key), f"/trace?steps={steps}&seconds={seconds}", "POST", timeout_s=seconds + 20.0
        )
        file.write_text(json.dumps(found), encoding="utf-8")
    except NoAnswer as error:
        fail(str(error))
    except OSError as error:
        fail(f"{file} cannot be written: {error.strerror}")
    spans = [event for event in found["traceEvents"] if event["ph"] == "X"]
    if as_json:
        tell({"file": str(file), "spans": len(spans)})
        return
    if not spans:
        console.print("nothing was computed meanwhile: record while requests are under way")
    console.print(f"{file}: {len(spans)} spans; open it at https://ui.perfetto.dev")
