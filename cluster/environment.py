"""What Ray must find in the environment before it is imported.

Ray 2.60 reads its settings once, when its extension module loads. A Ray cluster to be joined must have been
started with the same ones (k8s/ does). Knows nothing of clusters.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.spec import CONNECTIONS, ShoalSpec, SpecError, connection_limits, connection_limits_of

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",  # else the GCS keeps an event of every request and token
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cluster.serve_bounds.bounded",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # whose death ends every connection of its node
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20",  # on a busy machine 3 times 5 s are not enough to begin
    "RAY_worker_niceness": "0",  # Ray's 15 would leave no room below for what is done politely
    "OMP_NUM_THREADS": "1",
}
PRIVATE = {  # of one machine alone: pods are reached at their own addresses, each ingress by itself
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # a second HTTP listener in every replica, around the proxy
    # Else Ray replaces a node's 127.0.0.1 by an outside address, and its servers listen on every one.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
HEAD = {  # Ray's own notice of lost nodes; who computes with whom is decided earlier, by our own beats
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
OBJECT_STORE_BYTES = 80 * 1024 * 1024  # nothing of ours passes through it


@contextmanager
def environment_for(spec: ShoalSpec) -> Iterator[None]:
    """That of a private Ray, or of the one to join; raises SpecError if that one cannot be joined so."""
    if spec.address is not None and connection_limits_of(spec) != connection_limits():
        raise SpecError(
            f"max_connections is {spec.max_connections}, per address {spec.max_connections_per_address}: the "
            f"Ray cluster to join has its own; set {CONNECTIONS}='{spec.max_connections} "
            f"{spec.max_connections_per_address}' for each of its nodes and for this command"
        )
    with ray_environment() if spec.address is None else joined_environment():
        yield


@contextmanager
def ray_environment() -> Iterator[None]:
    """Settings and a fresh token file (mode 0600) for a private Ray; the file goes with the block."""
    assert "ray" not in sys.modules, "ray has read its settings already"
    with tempfile.TemporaryDirectory(prefix="shoal-") as directory:
        token_file = Path(directory) / "ray-token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32))
        os.environ.update(SETTINGS | PRIVATE, RAY_AUTH_TOKEN_PATH=str(token_file))
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ.pop("RAY_ADDRESS", None)
        yield


@contextmanager
def joined_environment() -> Iterator[None]:
    """Settings for a Ray that others started, whose token the environment must hold."""
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        raise SpecError(
            "the token of the Ray cluster to join is missing: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to "
            "a file that holds it"
        )
    assert "ray" not in sys.modules, "ray has read its settings already"
    os.environ.update(SETTINGS)
    yield


def data_token() -> bytes:
    """Of the sockets between actors: made from Ray's, so that whoever joins the same Ray has the same."""
    token = os.environ.get("RAY_AUTH_TOKEN") or Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text("utf-8")
    return hashlib.sha256(b"shoal data plane\0" + token.strip().encode()).digest()
