"""`shoal keys`: the file that `shoal serve --api-keys` reads.

A key is shown once, when it is made; the file holds its hash. Knows nothing of servers: those that run see
the change within a second or two.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cluster.cli_console import AsJson, console, fail, tell
from ingress.keys import ApiKey, KeysError, add_key, read_keys, revoke_key

keys = typer.Typer(no_args_is_help=True, help="API keys: make, list, revoke.")
File = Annotated[Path, typer.Argument(help="The file of keys.")]


@keys.command()
def add(
    file: File,
    name: Annotated[
        str, typer.Argument(help="Whose key; stands for it in logs, and its requests share a cache.")
    ],
    requests_per_minute: Annotated[int | None, typer.Option(help="Default: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Of prompts and answers.")] = None,
    max_sequences: Annotated[int | None, typer.Option(help="Under way at once.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once."""
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_sequences": max_sequences,
    }
    try:
        secret = add_key(file, name, **limits)
    except KeysError as error:
        fail(str(error))
    if as_json:
        tell({"name": name, "key": secret})
    elif not sys.stdout.isatty():
        sys.stdout.write(secret + "\n")
    else:
        console.print(f"The key of {name}, shown this once:\n\n[bold]{secret}[/]\n", highlight=False)


@keys.command("list")
def list_keys(file: File, as_json: AsJson = False) -> None:
    """Whose keys there are, and their limits."""
    try:
        found = read_keys(file)
    except KeysError as error:
        fail(str(error))
    if as_json:
        tell([key.model_dump(exclude={"sha256"}) for key in found])
        return
    table = Table("name", "requests/min", "tokens/min", "sequences", box=None)
    for key in found:
        table.add_row(key.name, *_limits(key))
    console.print(table)


@keys.command()
def revoke(
    file: File, name: Annotated[str, typer.Argument(help="Whose key.")], as_json: AsJson = False
) -> None:
    """Take a key away; what is under way with it is finished."""
    try:
        revoke_key(file, name)
    except KeysError as error:
        fail(str(error))
    if as_json:
        tell({"name": name, "revoked": True})


def _limits(key: ApiKey) -> list[str]:
    limits = (key.requests_per_minute, key.tokens_per_minute, key.max_sequences)
    return ["-" if limit is None else str(limit) for limit in limits]
