"""What every command of `shoal` says and how it fails.

Words go to stderr, results to stdout; a failure is one line for people. Knows no command.
"""

from __future__ import annotations

from typing import NoReturn

import typer
from rich.console import Console

EXIT_FAILED = 1
INTERRUPTED = "interrupted before it was ready; nothing is left running"

console = Console(stderr=True, highlight=False)


def fail(text: str) -> NoReturn:
    """Say what is wrong, a line each, and end."""
    for line in text.splitlines():
        console.print(f"[bold red]error[/] {line}", soft_wrap=True, markup=True)
    raise typer.Exit(EXIT_FAILED)
