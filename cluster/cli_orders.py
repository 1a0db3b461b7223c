"""`shoal scale`, `shoal drain` and `shoal restart`.

Orders to a cluster that serves: posts them to its admin listener and waits until all is so. Knows nothing
of how it is done.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli_console import AsJson, console, fail, tell

if TYPE_CHECKING:
    from cluster.beacon import Beacon

LOOK_S = 0.5
LONGEST_S = 3600.0
AWAY_S = 20.0

Url = Annotated[str | None, typer.Option(help="Of the admin listener; default: the one here.")]
Key = Annotated[str | None, typer.Option(envvar="SHOAL_ADMIN_KEY", help="Its key.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until all is as ordered.")]


def scale(
    counts: Annotated[list[str], typer.Argument(help="experts=N, attention=N or both.")],
    url: Url = None,
    key: Key = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Add or remove actors while serving; no request fails."""
    wanted: dict[str, int] = {}
    for count in counts:
        kind, _, number = count.partition("=")
        if not number.isdecimal():
            fail(f"{count[:40]!r} is not understood: write experts=6 or attention=2")
        wanted[kind] = int(number)
    _order("scale", wanted, url, key, wait, as_json)


def drain(
    name: Annotated[str, typer.Argument(help="An actor's id, or the address of a node.")],
    url: Url = None,
    key: Key = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Let an actor, or all on a node, hand over what they have and leave."""
    _order("drain", {"name": name}, url, key, wait, as_json)


def restart(url: Url = None, key: Key = None, wait: Wait = True, as_json: AsJson = False) -> None:
    """Replace every actor and every ingress by its next life, one after another, while serving."""
    _order("restart", {}, url, key, wait, as_json)


def _order(
    order: str, arguments: dict[str, Any], url: str | None, key: str | None, wait: bool, as_json: bool
) -> None:
    from cluster.beacon import Beacon, newest

    beacon = Beacon(url=url.rstrip("/"), key=key or "") if url else newest()
    if beacon is None:
        fail("no cluster runs here: start one with `shoal serve`, or name its admin listener with --url")
    done = _post(beacon.url, beacon.key, order, arguments)
    console.print(done)
    began_s = time.monotonic()
    is_settled = wait and _settles(beacon)
    seconds = round(time.monotonic() - began_s, 1)
    if is_settled:
        console.print(f"done in {seconds} s")
    elif wait:
        console.print("goes on without you: look at `shoal top`")
    if as_json:
        tell({"order": order, "done": done, "settled": is_settled, "seconds": seconds})


def _settles(beacon: Beacon) -> bool:
    """Wait until all is as ordered; False: nobody waits any longer."""
    from cluster.places import NoAnswer, fetch

    began_s = heard_s = time.monotonic()
    try:
        with console.status("under way ..."):
            while time.monotonic() < began_s + LONGEST_S:
                try:
                    if fetch(beacon)["settled"]:
                        return True
                    heard_s = time.monotonic()
                except NoAnswer as error:  # a controller that restarts is away for seconds
                    if time.monotonic() >= heard_s + AWAY_S:
                        fail(str(error))
                time.sleep(LOOK_S)
    except KeyboardInterrupt:
        pass
    return False


def _post(url: str, key: str, order: str, arguments: dict[str, Any]) -> str:
    """What is done, in words."""
    request = urllib.request.Request(
        f"{url}/orders/{order}",
        data=json.dumps(arguments).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=90) as answer:
            return str(json.load(answer)["done"])
    except urllib.error.HTTPError as error:
        fail(str(json.load(error).get("error", f"HTTP {error.code}")))
    except (OSError, ValueError) as error:
        fail(f"{url} does not answer: {error}; is `shoal serve` running?")
