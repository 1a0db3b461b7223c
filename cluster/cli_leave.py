"""`shoal stop` and `shoal linger`: how what was started elsewhere ends well.

Knows nothing of Kubernetes, which calls the second before it ends a pod.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import psutil
import typer

from cluster.cli_console import AsJson, console, fail, tell

LINGER_AT_LEAST_S = 5.0  # until everybody knows that no new connection should come here
LOOK_S = 0.5


def stop(
    address: Annotated[str, typer.Option(help="Ray cluster that Shoal serves from, HOST:PORT.")],
    as_json: AsJson = False,
) -> None:
    """End a Shoal that `shoal serve --address` left serving; Ray itself goes on."""
    from cluster.environment import joined_environment
    from cluster.spec import SpecError

    try:
        with joined_environment():
            from cluster.launch import stop_joined
            from cluster.ray_node import LaunchError

            try:
                stop_joined(address)
            except LaunchError as error:
                fail(str(error))
    except SpecError as error:
        fail(str(error))
    if as_json:
        tell({"address": address, "stopped": True})
    else:
        console.print("stopped")


def linger(
    port: Annotated[int, typer.Option(help="Where this host's clients are connected.")] = 8000,
    seconds: Annotated[float, typer.Option(help="At most.")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Wait until nobody is connected any more: what keeps a pod until its streams have ended."""
    start_s = time.monotonic()
    while (waited_s := time.monotonic() - start_s) < seconds:
        if waited_s >= min(seconds, LINGER_AT_LEAST_S) and not num_connected(port):
            break
        time.sleep(min(LOOK_S, seconds))
    left = num_connected(port)
    if as_json:
        tell({"port": port, "cut": left, "seconds": round(time.monotonic() - start_s, 1)})
    elif left:
        console.print(f"{left} connections to port {port} are cut: they did not end within {seconds:g} s")


def num_connected(port: int) -> int:
    """How many clients are connected to a port of this host."""
    open_ones: Any = psutil.net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in open_ones)
