"""A picture of bench.gpu_dispatch: round trips, and tokens a second of two GPUs.

    python -m bench.gpu_plot bench/results/gpu_dispatch.json docs/figures/two-gpus.png

Knows nothing of GPUs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TRIPS = {
    "shm 1:1": ("mailboxes, 8 answers a row", "#00224e"),
    "nccl 1:1": ("NCCL send and receive, 8", "#7f7c75"),
    "all_to_all, 4 back": ("NCCL all-to-all, 4 from each GPU", "#bcae6c"),
}
MODES = {
    "afd": ("attention | experts", "#00224e"),
    "afd-halves": ("the same, two micro-batches", "#7f7c75"),
    "co-located": ("both on both", "#bcae6c"),
    "co-located-halves": ("the same, two micro-batches", "#fee838"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    results = json.loads(given.report.read_text())["results"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    draw_trips(figure.add_subplot(1, 2, 1), results)
    draw_tokens(figure.add_subplot(1, 2, 2), results)
    figure.savefig(given.picture, dpi=120, bbox_inches="tight")


def draw_trips(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Medians of single round trips as lines."""
    for name, (label, color) in TRIPS.items():
        own = [one for one in results if one["kind"] == "trip" and one["name"] == name and one["rank"] == 0]
        rows = [str(one["rows"]) for one in own]
        axes.plot(rows, [one["single_p50_us"] for one in own], "o-", label=label, color=color)
    axes.set_xlabel("rows")
    axes.set_ylabel("us a round trip, median")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def draw_tokens(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Bars side by side for each number of rows of both GPUs together."""
    steps = [one for one in results if one["kind"] == "step"]
    counts = sorted({one["rows"] for one in steps if one["name"] in MODES and one["rows"] > 1})
    present = {mode: style for mode, style in MODES.items() if any(one["name"] == mode for one in steps)}
    for place, (mode, (label, color)) in enumerate(present.items()):
        heights = [
            sum(one["tokens_per_s"] for one in steps if one["name"] == mode and one["rows"] == count)
            for count in counts
        ]
        at = [index + (place - (len(present) - 1) / 2) * 0.2 for index in range(len(counts))]
        axes.bar(at, heights, width=0.18, label=label, color=color)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_xlabel("rows of both GPUs together")
    axes.set_ylabel("tokens/s, 1 dense + 4 MoE layers, 4k")
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
