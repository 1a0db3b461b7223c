"""`shoal up`: this host's part of a Ray cluster of several.

Becomes `ray start` with the settings that every node must share, and the seats that this host has. Knows
nothing of what will sit there: `shoal serve --address` does.
"""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from cluster.cli_console import fail
from cluster.environment import HEAD, OBJECT_STORE_BYTES, joined_environment
from cluster.hosts import seat_for
from cluster.spec import SpecError

KINDS = ("attention", "expert", "ingress")
PORT = 6379


def up(
    head: Annotated[bool, typer.Option("--head", help="Begin a cluster: this host keeps its state.")] = False,
    join: Annotated[str | None, typer.Option(help="HOST:PORT of the cluster's head.")] = None,
    seat: Annotated[
        list[str] | None, typer.Option(help="attention=N, expert=N or ingress=N: how many sit on this host.")
    ] = None,
    node_ip: Annotated[
        str | None, typer.Option(help="Of this host, as the others reach it [default: Ray's guess].")
    ] = None,
    port: Annotated[int, typer.Option(help="Of the head.")] = PORT,
) -> None:
    """Be a host of a Ray cluster until ended; RAY_AUTH_TOKEN (or _PATH) is the same on all of them."""
    if head == (join is not None):
        fail("say either --head, on one host, or --join HOST:PORT, on the others")
    try:
        seats = _seats(seat or ())
        with joined_environment():
            if head:
                os.environ.update(HEAD)
            from ray.scripts.scripts import cli  # after the environment, which it reads at import

            cli(start_words(join, seats, node_ip, port))
    except (SpecError, ValueError) as error:
        fail(str(error))


def start_words(join: str | None, seats: dict[str, int], node_ip: str | None, port: int) -> list[str]:
    """Of Ray's own command. join: none begins a cluster."""
    where = (
        ["--head", f"--port={port}", "--include-dashboard=false"] if join is None else [f"--address={join}"]
    )
    return [
        "start",
        *where,
        *([] if node_ip is None else [f"--node-ip-address={node_ip}"]),
        "--num-cpus=0",  # of our actors none asks for one
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--resources={json.dumps({seat_for(kind): count for kind, count in seats.items()})}",
        "--disable-usage-stats",
        "--block",
    ]


def _seats(told: list[str] | tuple[()]) -> dict[str, int]:
    """By kind; raises ValueError."""
    seats: dict[str, int] = {}
    for one in told:
        kind, _, count = one.partition("=")
        if kind not in KINDS or not count.isdecimal() or kind in seats:
            raise ValueError(f"seat is {one[:40]!r}: write {', '.join(f'{k}=N' for k in KINDS)}, each once")
        seats[kind] = int(count)
    return seats
