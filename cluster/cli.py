"""The `shoal` command.

Names its commands, each of which stands in a file of its own (cli_*.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_ask import chat, complete
from cluster.cli_bench import bench
from cluster.cli_chaos import chaos
from cluster.cli_console import console, fail
from cluster.cli_doctor import doctor
from cluster.cli_keys import keys
from cluster.cli_leave import linger, stop
from cluster.cli_orders import drain, restart, scale
from cluster.cli_serve import serve
from cluster.cli_trace import trace
from cluster.cli_up import up
from cluster.cli_watch import dashboards, status, top

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def shoal() -> None:
    """Serve DeepSeek-V3.2-architecture models from a Ray cluster."""


def make_tiny(
    directory: Annotated[Path, typer.Argument(help="Where to write; must not hold a checkpoint yet.")],
    preset: Annotated[str, typer.Option(help="test, laptop or bench.")] = "laptop",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
) -> None:
    """Write a seeded random checkpoint of V3.2 shape with a byte-level tokenizer."""
    from cluster.preflight import write_checkpoint

    if (directory / "config.json").exists():
        fail(f"{directory} already holds a checkpoint; choose another directory or remove it")
    try:
        config = write_checkpoint(directory, preset, seed)
    except (ValueError, OSError) as error:
        fail(str(error))
    size_mb = sum(file.stat().st_size for file in directory.iterdir()) / 1e6
    console.print(f"{directory}: {config.num_layers} layers, {config.num_experts} experts, {size_mb:.1f} MB")


COMMANDS = (
    *(serve, up, stop, linger, chat, complete, status, bench, doctor, make_tiny, chaos),
    *(top, trace, scale, drain, restart),
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(dashboards, name="dashboards")
app.add_typer(keys, name="keys")


def main() -> None:
    """The entry point of the `shoal` command."""
    app()


if __name__ == "__main__":
    main()
