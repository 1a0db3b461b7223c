"""What Ray must find in the environment before it is imported.

Ray 2.60 reads its settings once, when its extension module loads. Knows nothing of clusters.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS = {
    # Else Ray replaces a node's 127.0.0.1 by an outside address, and its servers listen on every one.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # a second HTTP listener in every replica, around the proxy
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cluster.serve_bounds.bounded",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def ray_environment() -> Iterator[None]:
    """Settings and a fresh token file (mode 0600) for a private Ray; the file goes with the block."""
    assert "ray" not in sys.modules, "ray has read its settings already"
    with tempfile.TemporaryDirectory(prefix="shoal-") as directory:
        token_file = Path(directory) / "ray-token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32))
        os.environ.update(SETTINGS, RAY_AUTH_TOKEN_PATH=str(token_file))
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ.pop("RAY_ADDRESS", None)
        yield
