"""Whether the time of a wrong key tells how much of it is right.

`python -m bench.wrong_keys`: keys that differ from a known one at the first character and at the last, looked
up in turn. Knows nothing of HTTP, whose own noise would hide what there is to see.
"""

from __future__ import annotations

import secrets
import statistics
import time
from typing import Annotated

import typer

from bench.report import stdout_console
from ingress.keys import PREFIX, ApiKey, digest_of, find


def main(
    keys: Annotated[int, typer.Option(help="Known ones.")] = 20,
    samples: Annotated[int, typer.Option(help="Of each kind.")] = 2000,
) -> None:
    """Print the medians, their difference, and that of two halves of one kind, which is noise."""
    known = [PREFIX + secrets.token_urlsafe(32) for _ in range(keys)]
    ring = [ApiKey(name=f"k{place}", sha256=digest_of(one)) for place, one in enumerate(known)]
    kinds = {"first": "~" + known[0][1:], "last": known[0][:-1] + "~", "noise": "~" + known[0][1:]}
    taken: dict[str, list[int]] = {kind: [] for kind in kinds}
    for _ in range(samples):
        for kind, given in sorted(kinds.items(), key=lambda _: secrets.randbits(32)):
            began_ns = time.perf_counter_ns()
            assert find(ring, given) is None
            taken[kind].append(time.perf_counter_ns() - began_ns)
    first, last, noise = (statistics.median(taken[kind]) for kind in kinds)
    console = stdout_console()
    console.print(f"wrong at the first character {first:.0f} ns, at the last {last:.0f} ns:")
    console.print(f"{abs(first - last):.0f} ns apart; one kind from itself {abs(first - noise):.0f} ns")


if __name__ == "__main__":
    typer.run(main)
