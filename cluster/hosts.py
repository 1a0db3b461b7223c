"""Where an actor may go, and whether it is here.

Knows nothing of Ray, which finds a node with a free seat.
"""

from __future__ import annotations

import psutil

HERE = "node"  # as an address: that of the Ray node that a process is on


def seat_for(kind: str) -> str:
    """The Ray resource whose count on a node says how many actors of that kind it takes."""
    return f"shoal-{kind}"


def pid_here(host: str, pid: int) -> int | None:
    """pid, if host is an address of this machine: the same number elsewhere is another process."""
    if host.startswith("127."):
        return pid
    own = {address.address for of_one in psutil.net_if_addrs().values() for address in of_one}
    return pid if host in own else None
