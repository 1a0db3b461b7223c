"""How well few moves follow a load that drifts.

`python -m bench.placement`: one layer's load wanders from window to window (Zipf popularity, its logarithm an
AR(1) walk). Each placement is chosen by what one window measured and judged by the load of the next, which is
what it serves; also by the window that it was chosen for. Pure CPU, seeded. Knows nothing of actors.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Annotated

import numpy as np
import typer

from bench.plots import lines
from bench.report import stdout_console
from router.placement import Held, Load, adapt, imbalance, room_for, solve

EXPERTS, REDUNDANT, WRITES = 256, 32, 8
ACTORS, EXPONENTS = (8, 16, 32), (0.5, 0.8, 1.1)
MOST = 1 / 8  # of a layer's load, for one expert: each token takes eight distinct ones
RHO, SIGMA = 0.95, 0.5  # of the walk: its memory, and how far it strays
FIGURE = (32, 0.8)  # the hardest of the usual ones


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """One policy over the windows: imbalance then and in the next window, slots written, milliseconds."""

    own: list[float]
    served: list[float]
    writes: list[int]
    ms: float


def drifting(exponent: float, windows: int, seed: int) -> Iterator[Load]:
    """The load of each window, sum 1."""
    random = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, EXPERTS + 1) ** exponent
    base = np.log(np.minimum(popularity / popularity.sum(), MOST))[random.permutation(EXPERTS)]
    walk = SIGMA * random.standard_normal(EXPERTS)
    for _ in range(windows):
        walk = RHO * walk + np.sqrt(1 - RHO**2) * SIGMA * random.standard_normal(EXPERTS)
        load_E = np.exp(base + walk)
        yield np.minimum(load_E / load_E.sum(), MOST)


def follow(policy: str, actors: int, loads: list[Load]) -> Followed:
    """policy: never, full or sticky."""
    room = room_for(EXPERTS, actors, 1, REDUNDANT)
    held_AE: Held = solve(loads[0], actors, room)
    own, served, writes = [], [], []
    start_s = time.process_time()
    for load_E, next_E in pairwise(loads[1:]):
        before_AE = held_AE
        if policy == "full":
            held_AE = solve(load_E, actors, room)
        elif policy == "sticky":
            held_AE = adapt(held_AE, load_E, room, WRITES)
        writes.append(int((held_AE & ~before_AE).sum()))
        own.append(imbalance(held_AE, load_E))
        served.append(imbalance(held_AE, next_E))
    return Followed(
        own=own, served=served, writes=writes, ms=1e3 * (time.process_time() - start_s) / len(own)
    )


def main(
    windows: int = 60,
    seed: int = 0,
    figure: Annotated[Path | None, typer.Option(help="PNG to draw the hardest usual case into.")] = None,
) -> None:
    """Print a row for each number of actors and each Zipf exponent; then draw."""
    print_row = functools.partial(stdout_console().print, soft_wrap=True)
    print_row(
        "| actors | Zipf | never | full | sticky | sticky / full | in its own window | "
        "slots written, mean (most) | ms |"
    )
    print_row("|---|---|---|---|---|---|---|---|---|")
    for actors in ACTORS:
        for exponent in EXPONENTS:
            loads = list(drifting(exponent, windows + 2, seed))
            never, full, sticky = (follow(policy, actors, loads) for policy in ("never", "full", "sticky"))
            ratio, own = (
                mean(getattr(sticky, name)) / mean(getattr(full, name)) for name in ("served", "own")
            )
            served = " | ".join(f"{mean(policy.served):.3f}" for policy in (never, full, sticky))
            print_row(
                f"| {actors} | {exponent} | {served} | {ratio:.3f} | {own:.3f} | "
                f"{mean(sticky.writes):.1f} ({max(sticky.writes)}) | {sticky.ms:.0f} |"
            )
            if figure is not None and (actors, exponent) == FIGURE:
                x = list(range(windows))
                curves = {"never": never, "full re-solve": full, "sticky, 8 slots": sticky}
                title = f"{actors} actors, {EXPERTS} experts, {REDUNDANT} redundant slots, Zipf {exponent}"
                named = {name: (x, policy.served) for name, policy in curves.items()}
                lines(figure, title, named, axes=("window", "imbalance (max / mean)"))


if __name__ == "__main__":
    typer.run(main)
