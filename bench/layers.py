"""Decode and prefill of a slice of DeepSeek-V3.2 at its true width.

    python -m bench.layers --out bench/results/layers.json
    python -m bench.layers --prompts 16x4096 2x32768 --out bench/results/layers-prefill.json

One dense and four MoE layers with all their experts, FP8, on one GPU. Decode: one CUDA graph a batch size.
Prefill: kernels launched one by one. Time by CUDA events, beside the floor and what vLLM 0.26 needs on the
same card (their sources stand with the figures). Knows nothing of requests.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.layers_prefill import line_of_prefill, measure_prefill
from bench.machine import command, describe
from bench.true_width import Slice, random_inputs, random_slice
from model.cache import PAGE_TOKENS
from model.fp8_step import DecodeStep
from model.fp8_walk import WalkTables
from model.true_width import true_width

# ms of the forward (no head, no sampler) of 1 + 4 layers, CUDA events, CUDA graphs, H200, random FP8 weights
# with routing spread, measured with vLLM 0.26.0; floor: bytes and operations over measured ceilings.
PEER_MS = {
    (4096, 1): 1.49, (4096, 16): 5.32, (4096, 64): 10.54, (4096, 128): 14.08,
    (32768, 1): 1.51, (32768, 16): 5.45, (32768, 64): 10.93, (32768, 128): 14.72,
}  # fmt: skip
FLOOR_MS = {
    (4096, 1): 0.72, (4096, 16): 4.65, (4096, 64): 9.85, (4096, 128): 11.4,
    (32768, 1): 0.73, (32768, 16): 4.73, (32768, 64): 10.15, (32768, 128): 12.0,
}  # fmt: skip
REPLAYS = 30
WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 128])
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--prompts", nargs="+", metavar="NxLENGTH", help="prefill instead, such as 16x4096")
    parser.add_argument("--chunk", type=int, nargs="+", default=[8192, 16384], help="most rows of a chunk")
    parser.add_argument("--moe-layers", type=int, default=4)
    parser.add_argument(
        "--modes", nargs="+", choices=["exact", "throughput"], default=["exact", "throughput"]
    )
    parser.add_argument("--profile", action="store_true", help="also where the time goes, by kernel")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    results = list(prefills(given) if given.prompts else steps(given))
    if given.out:
        report: dict[str, Any] = {
            "command": command("bench.layers"),
            "machine": describe(),
        }
        report |= {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "results": results}
        given.out.write_text(json.dumps(report, indent=1) + "\n")


def steps(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    num_pages = max(given.rows) * max(given.contexts) // PAGE_TOKENS
    model = random_slice(true_width(moe_layers=given.moe_layers), num_pages, torch.device("cuda"))
    for context in given.contexts:
        for rows in given.rows:
            for mode in given.modes:
                result = measure(model, rows, context, exact=mode == "exact", profile=given.profile)
                sys.stderr.write(line_of(result) + "\n")
                yield result


def prefills(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    prompts = [tuple(int(number) for number in text.split("x")) for text in given.prompts]
    num_pages = max(count * length for count, length in prompts) // PAGE_TOKENS
    model = random_slice(true_width(moe_layers=given.moe_layers), num_pages, torch.device("cuda"))
    times = kernel_times if given.profile else None
    for count, length in prompts:
        for chunk in given.chunk:
            for mode in given.modes:
                result = measure_prefill(
                    model, count, length, chunk, exact=mode == "exact", kernel_times=times
                )
                sys.stderr.write(line_of_prefill(result) + "\n")
                yield result


@torch.inference_mode()
def measure(model: Slice, rows: int, context: int, *, exact: bool, profile: bool) -> dict[str, Any]:
    """Median ms of one step of `rows` tokens that each see `context`."""
    torch.manual_seed(rows)  # both modes meet the same rows, and with them the same experts
    inputs = random_inputs(model.config, rows, context, model.cache.num_pages)
    embedded_RD = inputs.hidden_RD.clone()
    tables = WalkTables(model.config, context, inputs.hidden_RD.device)
    step = DecodeStep(model.config, inputs, tables, exact=exact)

    def run() -> None:
        inputs.hidden_RD.copy_(embedded_RD)
        step.run(model.layers, model.cache, model.last_norm_D)

    milliseconds = graph_ms(run)
    result: dict[str, Any] = {
        "rows": rows,
        "context": context,
        "mode": "exact" if exact else "throughput",
        "ms": milliseconds,
        "finite": bool(torch.isfinite(inputs.hidden_RD).all()),
        "peer_ms": PEER_MS.get((context, rows)),
        "floor_ms": FLOOR_MS.get((context, rows)),
    }
    if profile:
        result["kernels_us"] = kernel_times(run)
    return result


def graph_ms(run: Callable[[], None]) -> float:
    """Median over replays of one captured call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(WARM_UP + REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(statistics.median(times[WARM_UP:]))


def kernel_times(run: Callable[[], None]) -> dict[str, float]:
    """us by kernel name of one eager call, the most first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    times = {event.key: round(event.device_time_total, 1) for event in profile.key_averages()}
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def line_of(result: dict[str, Any]) -> str:
    peer, floor = result["peer_ms"], result["floor_ms"]
    beside = f"  floor {floor:.2f} ({floor / result['ms']:.0%})  vLLM {peer:.2f}" if peer and floor else ""
    return f"{result['context']:>6} x {result['rows']:<4}{result['mode']:<11}{result['ms']:7.3f} ms{beside}"


if __name__ == "__main__":
    main()
