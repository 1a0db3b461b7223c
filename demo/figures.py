"""The plots of the model report that are not curves (bench/plots.py), as small PNG files.

One sequential map, which colour-blind readers can tell apart. Knows nothing of where the values come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from bench.plots import COLOURS, DASHES, LEFT, MARGIN, SIZE, finish, new_figure
from demo.evaluation import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAP = "viridis"
ROW_INCHES, LETTER_INCHES = 0.2, 0.075  # of a heat map: what a label needs


def shares(
    path: Path,
    title: str,
    groups: Mapping[str, Mapping[str, Score]],
    *,
    x_label: str,
    goal: float | None = None,
) -> None:
    """Points with their 95 % intervals: per series a score by label. Labels stand in the order met first."""
    figure, plot = new_figure(title, (x_label, "right, %"))
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
    finish(figure, plot, path, goal=goal, with_legend=len(groups) > 1)


def bars(
    path: Path, title: str, values: Mapping[str, float], *, y_label: str, goal: float | None = None
) -> None:
    """One bar per name, its value above it."""
    figure, plot = new_figure(title, ("", y_label))
    drawn = plot.bar(list(values), list(values.values()), color=COLOURS[0], width=0.6)
    plot.bar_label(drawn, fmt="%.3g", fontsize=8)
    finish(figure, plot, path, goal=goal, with_legend=False)


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
    figure, plot = new_figure(title, axes, size=size, left=max(LEFT, MARGIN + label_inches))
    plot.grid(visible=False)
    image = plot.imshow(values, aspect="auto", cmap=MAP, vmin=limits[0], vmax=limits[1])
    plot.set_yticks(range(len(rows)), rows)
    if len(columns) <= 12:
        plot.set_xticks(range(len(columns)), columns)
        _write_cells(plot, values, middle=sum(limits) / 2)
    figure.colorbar(image, ax=plot, pad=0.02)
    finish(figure, plot, path, goal=None, with_legend=False)


def histogram(
    path: Path, title: str, values: Mapping[str, Sequence[float]], *, axes: tuple[str, str], bins: int = 40
) -> None:
    """Outlines over common bins, one per name."""
    figure, plot = new_figure(title, axes)
    top = max((value for one in values.values() for value in one), default=0.0) or 1.0
    edges = [top * edge / bins for edge in range(bins + 1)]
    for (name, one), colour, dash in zip(values.items(), cycle(COLOURS), cycle(DASHES), strict=False):
        plot.hist(one, bins=edges, histtype="step", color=colour, linestyle=dash, linewidth=1.6, label=name)
    finish(figure, plot, path, goal=None, with_legend=len(values) > 1)


def _write_cells(plot: Axes, values: Sequence[Sequence[float]], *, middle: float) -> None:
    for row, cells in enumerate(values):
        for column, value in enumerate(cells):
            if not math.isnan(value):
                colour = "white" if value < middle else "black"
                plot.text(column, row, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=8)
