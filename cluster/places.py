"""Where commands find the cluster on this machine.

From the beacon of `shoal serve` to its admin listener, and from there to its API. Knows nothing of what is
asked there.

Errors: NoAnswer.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from cluster.beacon import Beacon, newest

TIMEOUT_S = 5.0
USUAL_URL = "http://127.0.0.1:8000"


class NoAnswer(Exception):  # noqa: N818 - named for what happened, as the rest of the tree
    """The admin listener did not give a snapshot; the text says why and what to do."""


def fetch(beacon: Beacon) -> dict[str, Any]:
    """A snapshot; raises NoAnswer."""
    return ask(beacon, "/snapshot")


def ask(beacon: Beacon, path: str, method: str = "GET", timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """What the admin listener answers; raises NoAnswer."""
    headers = {"authorization": f"Bearer {beacon.key}"}
    try:
        request = urllib.request.Request(beacon.url + path, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        remedy = "give its key with --key" if error.code == 401 else "look at the output of `shoal serve`"
        raise NoAnswer(f"{beacon.url} answers HTTP {error.code}: {remedy}") from None
    except (OSError, ValueError) as error:
        raise NoAnswer(f"{beacon.url} does not answer: {error}; is `shoal serve` running?") from None
    return found


def admin_place(url: str | None, key: str | None) -> Beacon:
    """The one named, or the newest cluster's of this user; raises NoAnswer."""
    beacon = Beacon(url=url.rstrip("/"), key=key or "") if url else newest()
    if beacon is None:
        raise NoAnswer(
            "no cluster runs here: start one with `shoal serve`, or name its admin listener with --url"
        )
    return beacon


def api_place(url: str | None) -> str:
    """The one named, or the newest cluster's of this user, or the usual one. Without /v1 at its end."""
    if url is None:
        beacon = newest()
        try:
            url = str(fetch(beacon)["url"]) if beacon is not None else USUAL_URL
        except NoAnswer:
            url = USUAL_URL
    return url.rstrip("/").removesuffix("/v1")
