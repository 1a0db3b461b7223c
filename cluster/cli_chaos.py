"""`shoal chaos`.

Faults against a cluster of its own, a table at the end. Knows nothing of how a fault is made.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_console import EXIT_FAILED, INTERRUPTED, AsJson, console, fail
from cluster.environment import ray_environment
from cluster.port import check_port


def chaos(
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint directory; default: the embedded model.")
    ] = None,
    fault: Annotated[list[str] | None, typer.Option(help="By name, several times; default: all.")] = None,
    kills: Annotated[int, typer.Option(help="SIGKILLs in a row at the end; 0: none.")] = 5,
    streams: Annotated[int, typer.Option(min=1, help="Streams that are always under way.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the questions and of who is killed.")] = 0,
    port: Annotated[int, typer.Option(help="HTTP port of the cluster that it starts.")] = 8100,
    journal: Annotated[Path | None, typer.Option(help="Directory for every event of every stream.")] = None,
    report: Annotated[Path | None, typer.Option(help="Markdown file to write the table into.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a cluster, load it, kill its processes, and check every token of every stream."""
    from cluster.reliability import as_json as in_json
    from cluster.reliability import places_of, table, write_report

    with ray_environment():
        from cluster.chaos_set import Plan, run_set
        from cluster.ray_node import LaunchError

        try:
            check_port("127.0.0.1", port)
            if report is not None:
                places_of(report)  # not after minutes
            plan = Plan(
                model=model,
                faults=fault or (),
                kills=kills,
                streams=streams,
                seed=seed,
                port=port,
                journal=journal,
            )
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # Ray tells of every death
                outcomes = run_set(plan, console)
        except KeyboardInterrupt:
            fail(INTERRUPTED)
        except (LaunchError, ValueError) as error:
            fail(str(error))
    if as_json:
        sys.stdout.write(in_json(outcomes) + "\n")
    else:
        console.print(table(outcomes))
    if report is not None:
        write_report(report, outcomes, plan.heading)
    if not all(outcome.is_as_promised for outcome in outcomes):
        raise typer.Exit(EXIT_FAILED)
