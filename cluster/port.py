"""Whether somebody may listen on a port, asked before anything starts.

Imports nothing heavy: a taken port is said at once. Knows nothing of what will listen there.
"""

from __future__ import annotations

import errno
import socket

from cluster.spec import SpecError


def check_port(host: str, port: int, name: str = "port") -> None:
    """Raises SpecError if nobody could listen there; 0: on no port of that host. name: of the field."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SpecError(_refusal(host, port, name, error)) from None


def _refusal(host: str, port: int, name: str, error: OSError) -> str:
    is_taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
    if port and is_taken:
        flag = "--" + name.replace("_", "-")
        return f"{name} {port} on {host} cannot be used ({error.strerror}); free it or choose one with {flag}"
    field = name.replace("port", "host")
    return f"{field} is {host!r}: nobody can listen there ({error.strerror}); give an address of this machine"
