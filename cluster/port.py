"""Whether somebody may listen on a port, asked before anything starts.

Imports nothing heavy: a taken port is said at once. Knows nothing of what will listen there.
"""

from __future__ import annotations

import socket

from cluster.spec import SpecError


def check_port(host: str, port: int) -> None:
    """Raises SpecError if nobody could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SpecError(
                f"port {port} on {host} cannot be used ({error.strerror}); free it or choose one with --port"
            ) from None
