"""A picture of where a step of bench.layers goes.

    python -m bench.layers_plot bench/results/layers.json docs/layers.png

Needs a report taken with --profile. Knows nothing of GPUs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# What a kernel's name begins with, in the order of the stack; the rest is "between products".
GROUPS = {
    "experts": ("_expert",),
    "dense products": ("_fp8_gemm", "_bf16_gemm"),
    "sparse attention": ("sparse_mla", "combine"),
    "indexer and top-2048": ("index_logits", "narrow", "choose", "_index_query"),
}
REST = "between products"
COLORS = ("#00224e", "#4a5a7a", "#7f7c75", "#bcae6c", "#fee838")  # cividis: told apart by everybody


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    report = json.loads(given.report.read_text())
    draw(report).savefig(given.picture, dpi=120, bbox_inches="tight")


def draw(report: dict[str, Any]) -> Figure:
    """Stacked bars, a panel for each context, beside the floor and the peer."""
    results = [result for result in report["results"] if result["mode"] == "throughput"]
    contexts = sorted({result["context"] for result in results})
    figure = Figure(figsize=(5 * len(contexts), 4))
    for place, context in enumerate(contexts):
        axes = figure.add_subplot(1, len(contexts), place + 1)
        own = [result for result in results if result["context"] == context]
        labels = [str(result["rows"]) for result in own]
        below = [0.0] * len(own)
        for group, color in zip([*GROUPS, REST], COLORS, strict=True):
            heights = [shares(result["kernels_us"])[group] / 1000 for result in own]
            axes.bar(labels, heights, bottom=below, label=group, color=color, width=0.55)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        for name, key, marker in (("floor", "floor_ms", "_"), ("vLLM 0.26", "peer_ms", "x")):
            axes.plot(labels, [result[key] for result in own], marker, color="#c0392b", label=name, ms=9)
        axes.set_title(f"{context:,} tokens of context")
        axes.set_xlabel("rows (sequences)")
        axes.set_ylabel("ms a step of 1 dense + 4 MoE layers")
        axes.legend(fontsize=7)
    return figure


def shares(kernels_us: dict[str, float]) -> dict[str, float]:
    """us by group; what is no kernel of ours is between them."""
    sums = dict.fromkeys([*GROUPS, REST], 0.0)
    for name, us in kernels_us.items():
        found = [group for group, starts in GROUPS.items() if name.startswith(starts)]
        sums[found[0] if found else REST] += us
    return sums


if __name__ == "__main__":
    main()
