"""`shoal top`, `status`, `requests` and `dashboards`: to see a cluster.

Knows nothing of Ray: it asks the admin listener, or writes files for others that watch.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cluster.cli_console import EXIT_FAILED, AsJson, console, fail, tell

LOOK_S = 1.0

dashboards = typer.Typer(no_args_is_help=True, help="Grafana boards and Prometheus alerts.")


def top(
    url: Annotated[str | None, typer.Option(help="Of the admin listener; default: the one here.")] = None,
    key: Annotated[str | None, typer.Option(envvar="SHOAL_ADMIN_KEY", help="Its key.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Look for a second, print and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch actors, expert load and events of a running cluster."""
    from cluster.places import NoAnswer, admin_place, fetch
    from cluster.top import draw
    from cluster.top_app import TopApp

    try:
        beacon = admin_place(url, key)
        if as_json:
            tell(fetch(beacon))
        elif once or not sys.stdout.isatty():
            before = fetch(beacon)
            time.sleep(LOOK_S)
            Console().print(draw([before, fetch(beacon)]))
        else:
            TopApp(beacon).run()
    except NoAnswer as error:
        fail(str(error))


def status(
    url: Annotated[str | None, typer.Option(help="Of the admin listener; default: the one here.")] = None,
    key: Annotated[str | None, typer.Option(envvar="SHOAL_ADMIN_KEY", help="Its key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say in a few lines whether all serve; exit code 1 if not."""
    from cluster.places import NoAnswer, admin_place, fetch

    try:
        seen = fetch(admin_place(url, key))
    except NoAnswer as error:
        fail(str(error))
    told = {name: seen[name] for name in ("model", "url", "ready", "epoch")}
    actors = [
        {name: one[name] for name in ("actor_id", "kind", "state", "pid", "deaths")} for one in seen["actors"]
    ]
    if as_json:
        tell({**told, "actors": actors, "events": seen["events"]})
    else:
        sys.stdout.write(
            f"{seen['model']} at {seen['url']}/v1: {'ready' if seen['ready'] else 'not ready'}\n"
        )
        for one in actors:
            sys.stdout.write("{actor_id:<12} {state:<10} pid {pid}, {deaths} deaths\n".format(**one))
        for event in seen["events"][-3:]:
            sys.stdout.write(f"{seen['at_s'] - event['at_s']:.0f} s ago  {event['text']}\n")
    if not seen["ready"]:
        raise typer.Exit(EXIT_FAILED)


def requests(
    url: Annotated[str | None, typer.Option(help="Of the admin listener; default: the one here.")] = None,
    key: Annotated[str | None, typer.Option(envvar="SHOAL_ADMIN_KEY", help="Its key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """List the last choices that ended: whose, what took how long, and at which attention actors."""
    from cluster.places import NoAnswer, admin_place, fetch
    from cluster.top import request_table

    try:
        ended = fetch(admin_place(url, key))["requests"]
    except NoAnswer as error:
        fail(str(error))
    if as_json:
        tell(ended)
    else:
        Console().print(request_table(ended) if ended else "none has ended yet")


@dashboards.command()
def write(
    directory: Annotated[Path, typer.Argument(help="Where to write; what is there is overwritten.")],
    prometheus: Annotated[
        str, typer.Option(help="Prometheus as Grafana reaches it.")
    ] = "http://127.0.0.1:9090",
    kubernetes: Annotated[
        bool, typer.Option("--kubernetes", help="What k8s/components/monitoring is made of instead.")
    ] = False,
    as_json: AsJson = False,
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
    except OSError as error:
        fail(f"{directory} cannot be written: {error.strerror}")
    files = [str(file) for file in written]
    if as_json:
        tell(files)
    else:
        console.print("\n".join(files))


@dashboards.command()
def push(
    url: Annotated[str, typer.Argument(help="Of Grafana.")],
    token: Annotated[str, typer.Option(envvar="GRAFANA_TOKEN", help="Of a service account, role Admin.")],
    prometheus: Annotated[
        str, typer.Option(help="Prometheus as Grafana reaches it.")
    ] = "http://127.0.0.1:9090",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, say what would be.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show how what is there differs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the folder, data source, boards and alert rules of a running Grafana; again: nothing."""
    from cluster.alerts import ALERTS
    from cluster.boards import BOARDS
    from cluster.grafana_push import PushError
    from cluster.grafana_push import push as push_to

    try:
        for change in push_to(url, token, BOARDS, ALERTS, prometheus, is_dry_run=dry_run):
            if as_json:
                tell({**asdict(change), "is_dry_run": dry_run})
                continue
            would = "would be " if dry_run and change.diff else ""
            console.print(f"{change.kind} {change.name}: {would}{change.action}", markup=False)
            if diff and change.diff:
                console.print(change.diff, markup=False, soft_wrap=True)
    except PushError as error:
        fail(str(error))
