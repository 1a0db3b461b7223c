"""The plots of the model report, as small PNG files.

Okabe and Ito's colours and one sequential map, which colour-blind readers can tell apart; the same values
give the same bytes. Knows nothing of where the values come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from demo.evaluation import Score

if TYPE_CHECKING:  # matplotlib is imported by the first plot: a page of words need not wait a second for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MAP = "viridis"
SIZE = (6.4, 3.2)  # inches
DPI = 100
MARGIN, LEFT = 0.45, 0.75  # inches
ROW_INCHES, LETTER_INCHES = 0.2, 0.075  # of a heat map: what a label needs
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
    figure, plot = _figure(title, axes)
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
    _finish(figure, plot, path, goal=goal, with_legend=len(curves) > 1)


def shares(
    path: Path,
    title: str,
    groups: Mapping[str, Mapping[str, Score]],
    *,
    x_label: str,
    goal: float | None = None,
) -> None:
    """Points with their 95 % intervals: per series a score by label. Labels stand in the order met first."""
    figure, plot = _figure(title, (x_label, "right, %"))
    labels = list(dict.fromkeys(label for scores in groups.values() for label in scores))
    for rank, ((name, scores), colour) in enumerate(zip(groups.items(), cycle(COLOURS), strict=False)):
        shift = 0.12 * (rank - (len(groups) - 1) / 2)
        asked = [(labels.index(label) + shift, one) for label, one in scores.items() if one.of]
        reach = [[100 * abs(one.share - one.interval[end]) for _, one in asked] for end in (0, 1)]
        plot.errorbar(
            [place for place, _ in asked],
            [100 * one.share for _, one in asked],
            yerr=reach,
            fmt="os^D"[rank % 4],
            color=colour,
            capsize=4,
            label=name,
        )
    plot.set_xticks(range(len(labels)), labels)
    plot.set_xlim(-0.5, len(labels) - 0.5)
    plot.set_ylim(-3, 103)
    _finish(figure, plot, path, goal=goal, with_legend=len(groups) > 1)


def bars(
    path: Path, title: str, values: Mapping[str, float], *, y_label: str, goal: float | None = None
) -> None:
    """One bar per name, its value above it."""
    figure, plot = _figure(title, ("", y_label))
    drawn = plot.bar(list(values), list(values.values()), color=COLOURS[0], width=0.6)
    plot.bar_label(drawn, fmt="%.3g", fontsize=8)
    _finish(figure, plot, path, goal=goal, with_legend=False)


def heat_map(
    path: Path,
    title: str,
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    axes: tuple[str, str],
    limits: tuple[float, float],
) -> None:
    """values: [row][column], NaN where nothing was measured; written into the cells where they fit."""
    label_inches = LETTER_INCHES * max((len(row) for row in rows), default=0)
    size = (SIZE[0], max(SIZE[1], ROW_INCHES * len(rows)))
    figure, plot = _figure(title, axes, size=size, left=max(LEFT, MARGIN + label_inches))
    plot.grid(visible=False)
    image = plot.imshow(values, aspect="auto", cmap=MAP, vmin=limits[0], vmax=limits[1])
    plot.set_yticks(range(len(rows)), rows)
    if len(columns) <= 12:
        plot.set_xticks(range(len(columns)), columns)
        _write_cells(plot, values, middle=sum(limits) / 2)
    figure.colorbar(image, ax=plot, pad=0.02)
    _finish(figure, plot, path, goal=None, with_legend=False)


def histogram(
    path: Path, title: str, values: Mapping[str, Sequence[float]], *, axes: tuple[str, str], bins: int = 40
) -> None:
    """Outlines over common bins, one per name."""
    figure, plot = _figure(title, axes)
    top = max((value for one in values.values() for value in one), default=0.0) or 1.0
    edges = [top * edge / bins for edge in range(bins + 1)]
    for (name, one), colour, dash in zip(values.items(), cycle(COLOURS), cycle(DASHES), strict=False):
        plot.hist(one, bins=edges, histtype="step", color=colour, linestyle=dash, linewidth=1.6, label=name)
    _finish(figure, plot, path, goal=None, with_legend=len(values) > 1)


def windowed(values: Sequence[float]) -> list[float]:
    """At most MAX_POINTS means of neighbours; what is NaN does not count, and nothing else makes NaN."""
    size = math.ceil(len(values) / MAX_POINTS) or 1
    found = []
    for start in range(0, len(values), size):
        known = [value for value in values[start : start + size] if not math.isnan(value)]
        found.append(sum(known) / len(known) if known else math.nan)
    return found


def _write_cells(plot: Axes, values: Sequence[Sequence[float]], *, middle: float) -> None:
    for row, cells in enumerate(values):
        for column, value in enumerate(cells):
            if not math.isnan(value):
                colour = "white" if value < middle else "black"
                plot.text(column, row, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=8)


def _figure(
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


def _finish(figure: Figure, plot: Axes, path: Path, *, goal: float | None, with_legend: bool) -> None:
    if goal is not None:
        plot.axhline(goal, color="#777777", linewidth=1, linestyle=(0, (4, 3)))
        place = ("axes fraction", "data")
        plot.annotate("goal", (1, goal), xycoords=place, fontsize=7, color="#555555", ha="right", va="bottom")
    if with_legend:
        plot.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})  # without the version of the library
