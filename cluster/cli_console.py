"""What every command of `shoal` says and how it fails.

Words go to stderr, results to stdout, as JSON where that is wanted; a failure is one line for people. Knows
no command.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

EXIT_FAILED = 1
INTERRUPTED = "interrupted before it was ready; nothing is left running"

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

console = Console(stderr=True, highlight=False)


def tell(result: Any) -> None:
    """On one line of stdout, as JSON."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def fail(text: str) -> NoReturn:
    """Say what is wrong, a line each, and end."""
    for line in text.splitlines():
        console.print(f"[bold red]error[/] {line}", soft_wrap=True, markup=True)
    raise typer.Exit(EXIT_FAILED)
