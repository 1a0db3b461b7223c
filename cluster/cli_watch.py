"""`shoal top` and `shoal dashboards`: to see a cluster.

Knows nothing of Ray: it asks the admin listener, or writes files for others that watch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.cli_console import console, fail

LOOK_S = 1.0

dashboards = typer.Typer(no_args_is_help=True, help="Grafana boards and Prometheus alerts.")


def top(
    url: Annotated[str | None, typer.Option(help="Of the admin listener; default: the one here.")] = None,
    key: Annotated[str | None, typer.Option(envvar="SHOAL_ADMIN_KEY", help="Its key.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Look for a second, print and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one snapshot as JSON on stdout.")] = False,
) -> None:
    """Watch actors, expert load and events of a running cluster."""
    from cluster.beacon import find
    from cluster.top import draw
    from cluster.top_app import NoAnswer, TopApp, fetch

    beacon = find(url, key)
    if beacon is None:
        fail("no cluster runs here: start one with `shoal serve`, or name its admin listener with --url")
    try:
        if as_json:
            sys.stdout.write(json.dumps(fetch(beacon)) + "\n")
        elif once or not sys.stdout.isatty():
            before = fetch(beacon)
            time.sleep(LOOK_S)
            Console().print(draw([before, fetch(beacon)]))
        else:
            TopApp(beacon).run()
    except NoAnswer as error:
        fail(str(error))


@dashboards.command()
def write(
    directory: Annotated[Path, typer.Argument(help="Where to write; what is there is overwritten.")],
    prometheus: Annotated[
        str, typer.Option(help="Prometheus as Grafana reaches it.")
    ] = "http://127.0.0.1:9090",
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="What k8s/components/monitoring is made of instead.")
    ] = False,
) -> None:
    """Write Grafana's boards, its provisioning files and Prometheus' alert rules."""
    from cluster.alerts import ALERTS
    from cluster.boards import BOARDS
    from cluster.grafana import write as write_files
    from cluster.grafana import write_for_kubernetes

    try:
        if kubernetes:
            written = write_for_kubernetes(directory, BOARDS, ALERTS)
        else:
            written = write_files(directory, BOARDS, ALERTS, prometheus)
        for file in written:
            console.print(str(file))
    except OSError as error:
        fail(f"{directory} cannot be written: {error.strerror}")
