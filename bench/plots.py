"""Curves as small PNG files.

Okabe and Ito's colours, which colour-blind readers can tell apart; the same values give the same bytes.
Knows nothing of where the values come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib is imported by the first plot: a page of words need not wait a second for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
SIZE = (6.4, 3.2)  # inches
DPI = 100
MARGIN, LEFT = 0.45, 0.75  # inches
MAX_POINTS = 200  # of one line: more cannot be seen at this width
Line = tuple[Sequence[float], Sequence[float]]


def lines(
    path: Path,
    title: str,
    curves: Mapping[str, Line],
    *,
    axes: tuple[str, str],
    log: str = "",
    goal: float | None = None,
) -> None:
    """One line per name, of at most MAX_POINTS means; NaN leaves a gap.

    Log: the logarithmic axes, as "xy".
    """
    figure, plot = new_figure(title, axes)
    for (name, (x, y)), colour, dash in zip(curves.items(), cycle(COLOURS), cycle(DASHES), strict=False):
        mark = "o" if len(x) <= 12 else None
        x, y = windowed(x), windowed(y)
        plot.plot(x, y, dash, color=colour, label=name, linewidth=1.4, marker=mark, markersize=4)
    if "x" in log:
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter("{x:g}")
    if "y" in log and any(value > 0 for _, y in curves.values() for value in y):
        from matplotlib.ticker import LogLocator

        plot.set_yscale("log")
        plot.yaxis.set_major_formatter("{x:g}")
        plot.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        plot.yaxis.set_minor_formatter("{x:g}")
        plot.tick_params(which="minor", labelsize=8)
    finish(figure, plot, path, goal=goal, with_legend=len(curves) > 1)


def windowed(values: Sequence[float]) -> list[float]:
    """At most MAX_POINTS means of neighbours; what is NaN does not count, and nothing else makes NaN."""
    size = math.ceil(len(values) / MAX_POINTS) or 1
    found = []
    for start in range(0, len(values), size):
        known = [value for value in values[start : start + size] if not math.isnan(value)]
        found.append(sum(known) / len(known) if known else math.nan)
    return found


def new_figure(
    title: str, axes: tuple[str, str], *, size: tuple[float, float] = SIZE, left: float = LEFT
) -> tuple[Figure, Axes]:
    """Margins are set by hand: to have them found would take as long as the drawing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI)
    FigureCanvasAgg(figure)
    width, height = size
    inside = (width - left - MARGIN / 2, height - 2 * MARGIN)
    plot = figure.add_axes((left / width, MARGIN * 1.2 / height, inside[0] / width, inside[1] / height))
    plot.set_title(title, fontsize=10)
    plot.set_xlabel(axes[0], fontsize=9)
    plot.set_ylabel(axes[1], fontsize=9)
    plot.tick_params(labelsize=8)
    plot.grid(visible=True, color="#dddddd", linewidth=0.6)
    plot.set_axisbelow(True)
    for side in ("top", "right"):
        plot.spines[side].set_visible(False)
    return figure, plot


def finish(figure: Figure, plot: Axes, path: Path, *, goal: float | None, with_legend: bool) -> None:
    if goal is not None:
        plot.axhline(goal, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
        place = ("axes fraction", "data")
        plot.annotate("goal", (1, goal), xycoords=place, fontsize=7, color="#555555", ha="right", va="bottom")
    if with_legend:
        plot.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})  # without the version of the library
