"""The `shoal` command.

Names its commands, each of which stands in a file of its own (cli_*.py).
"""

from __future__ import annotations

import typer

from cluster.cli_ask import chat, complete
from cluster.cli_bench import bench
from cluster.cli_chaos import chaos
from cluster.cli_doctor import doctor
from cluster.cli_keys import keys
from cluster.cli_leave import linger, stop
from cluster.cli_orders import drain, restart, scale
from cluster.cli_serve import serve
from cluster.cli_tiny import make_tiny
from cluster.cli_trace import trace
from cluster.cli_up import up
from cluster.cli_watch import dashboards, requests, status, top

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def shoal() -> None:
    """Serve DeepSeek-V3.2-architecture models from a Ray cluster."""


COMMANDS = (
    *(serve, up, stop, linger, chat, complete, status, bench, doctor, make_tiny, chaos),
    *(top, requests, trace, scale, drain, restart),
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
