"""A picture of where a step of bench.layers goes, or a prompt.

    python -m bench.layers_plot bench/results/layers.json docs/layers.png
    python -m bench.layers_plot bench/results/layers-prefill.json docs/layers-prefill.png

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
    "experts": ("_expert", "expert_mlp"),
    "dense products": ("_fp8_gemm", "_bf16_gemm"),
    "products of many rows": ("many_kernel",),
    "attention": ("sparse_mla", "combine", "dense_mla"),
    "indexer and top-2048": ("index_logits", "narrow", "choose", "_index_query"),
}
REST = "between products"
COLORS = (
    "#00224e",
    "#35456c",
    "#666970",
    "#948e77",
    "#c8b866",
    "#fee838",
)  # cividis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    report = json.loads(given.report.read_text())
    is_prefill = "tokens_s" in report["results"][0]
    (draw_prefill if is_prefill else draw)(report).savefig(given.picture, dpi=120, bbox_inches="tight")


def draw(report: dict[str, Any]) -> Figure:
    """Stacked bars, a panel for each context, beside the floor and the peer."""
    results = [result for result in report["results"] if result["mode"] == "throughput"]
    contexts = sorted({result["context"] for result in results})
    figure = Figure(figsize=(5 * len(contexts), 4))
    for place, context in enumerate(contexts):
        axes = figure.add_subplot(1, len(contexts), place + 1)
        own = [result for result in results if result["context"] == context]
        labels = [str(result["rows"]) for result in own]
        stack(axes, labels, [result["kernels_us"] for result in own], 1000)
        for name, key, marker in (("floor", "floor_ms", "_"), ("vLLM 0.26", "peer_ms", "x")):
            axes.plot(labels, [result[key] for result in own], marker, color="#c0392b", label=name, ms=9)
        axes.set_title(f"{context:,} tokens of context")
        axes.set_xlabel("rows (sequences)")
        axes.set_ylabel("ms a step of 1 dense + 4 MoE layers")
        axes.legend(fontsize=7)
    return figure


def draw_prefill(report: dict[str, Any]) -> Figure:
    """Stacked bars of a token's time, one for each kind of prompts and mode that was profiled."""
    results = [result for result in report["results"] if "kernels_us" in result]
    figure = Figure(figsize=(2 + 1.6 * len(results), 4))
    axes = figure.add_subplot()
    labels = [
        f"{result['prompts']} x {result['length']:,}\nby {result['chunk']:,}\n{result['mode']}"
        for result in results
    ]
    for result, label in zip(results, labels, strict=True):
        tokens = result["prompts"] * result["length"]
        result["kernels_us"] = {name: us / tokens for name, us in result["kernels_us"].items()}
        for key, marker in (("floor_tokens_s", "_"), ("peer_tokens_s", "x")):
            axes.plot([label], [1e6 / result[key]], marker, color="#c0392b", ms=9, zorder=3)
    stack(axes, labels, [result["kernels_us"] for result in results], 1)
    axes.set_title("prefill; _ floor, x vLLM 0.26", fontsize=10)
    axes.set_ylabel("us a token of 1 dense + 4 MoE layers")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def stack(axes: Any, labels: list[str], kernels_us: list[dict[str, float]], divisor: float) -> None:
    """A bar for each label, a colour for each group."""
    below = [0.0] * len(labels)
    for group, color in zip([*GROUPS, REST], COLORS, strict=True):
        heights = [shares(times)[group] / divisor for times in kernels_us]
        axes.bar(labels, heights, bottom=below, label=group, color=color, width=0.55)
        below = [low + height for low, height in zip(below, heights, strict=True)]


def shares(kernels_us: dict[str, float]) -> dict[str, float]:
    """us by group; what is no kernel of ours is between them."""
    sums = dict.fromkeys([*GROUPS, REST], 0.0)
    for name, us in kernels_us.items():
        found = [group for group, starts in GROUPS.items() if name.startswith(starts)]
        sums[found[0] if found else REST] += us
    return sums


if __name__ == "__main__":
    main()
