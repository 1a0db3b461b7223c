"""Every kernel on the device: right first, then how long.

    python -m bench.kernels --out kernels.json [--ops sparse_mla select_topk] [--quick]

A variant that is not right is not timed. Times are medians of CUDA-graph replays; a graph runs the op once on
each of several inputs, so many that they do not fit the L2 together. Knows no op: see bench/kernel_cases.py
and bench/product_cases.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import kernel_cases, product_cases
from bench.kernel_cases import Case
from bench.machine import command

CASES = {**kernel_cases.CASES, **product_cases.CASES}
L2_BYTES = 50 << 20
MOST_COPIES = 48
REPLAYS = 11


def main() -> None:
    arguments = _arguments()
    if not torch.cuda.is_available():
        raise SystemExit("bench.kernels: no CUDA device here; it measures nothing without one")
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    results: list[dict[str, Any]] = []
    _compile_all(arguments.ops, arguments.jobs)
    for op in arguments.ops:
        for case in CASES[op]():
            results += _measure_case(case, quick=arguments.quick)
            arguments.out.write_text(json.dumps(_report(results), indent=1))
            torch.cuda.empty_cache()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("kernels.json"))
    parser.add_argument("--jobs", type=int, default=12, help="processes that compile")
    parser.add_argument("--quick", action="store_true", help="the first two variants of each case")
    return parser.parse_args()


def _report(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    return {
        "command": command("bench.kernels"),
        "device": device.name,
        "torch": torch.__version__,
        "results": list(results),
    }


def _compile_all(ops: Sequence[str], jobs: int) -> None:
    """Fill Triton's cache on disk: every variant once, by processes side by side."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        shares = max(1, jobs // 2)
        list(pool.map(_compile_some, [(op, share, shares) for op in ops for share in range(shares)]))


def _compile_some(share: tuple[str, int, int]) -> None:
    """Every `of`th variant of an op's cases, beginning with the `first`."""
    op, first, of = share
    number = 0
    for case in CASES[op]():
        inputs = None
        for run in case.variants.values():
            number += 1
            if number % of == first:
                inputs = case.make() if inputs is None else inputs
                _tried(run, inputs)


def _tried(run: Callable[[Any], Tensor], inputs: Any) -> Tensor | str:
    """The result, or the words of the error: a variant may ask for more than the device has."""
    try:
        out = run(inputs)
        torch.cuda.synchronize()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return out


def _measure_case(case: Case, *, quick: bool) -> Iterator[dict[str, Any]]:
    copies = min(MOST_COPIES, max(2, round(3 * L2_BYTES / case.bytes)))
    inputs = [case.make() for _ in range(copies)]
    peer = f"  ({case.peer.name} {case.peer.time_us} us)" if case.peer else ""
    print(f"\n{case.op} {case.name}{peer}", flush=True)
    for name, run in list(case.variants.items())[: 2 if quick else None]:
        out = _tried(run, inputs[0])
        if isinstance(out, str):
            print(f"  {name:44} {out}")
            continue
        error = case.error(inputs[0], out)
        result = {"op": case.op, "case": case.name, "variant": name, "error": error}
        if error > 1:
            print(f"  {name:44} WRONG: error {error:.3g} of what is allowed", flush=True)
        else:
            time_us = _time_us(run, inputs)
            result |= {
                "us": time_us,
                "tb_s": case.bytes / time_us / 1e6,
                "tflops": case.flops / time_us / 1e6,
            }
            if case.peer:
                result |= {"peer": case.peer.name, "peer_us": case.peer.time_us}
                result |= {"of_peer": time_us / case.peer.time_us, "peer_source": case.peer.source}
            print(
                f"  {name:44} {time_us:9.1f} us {result['tflops']:7.0f} TF {result['tb_s']:5.2f} TB/s "
                f"{result.get('of_peer', 0):5.2f} x peer   error {error:.2f}",
                flush=True,
            )
        yield result


def _time_us(run: Callable[[Any], Tensor], inputs: Sequence[Any]) -> float:
    """Of one run: median over replays of a graph that runs each input once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in inputs:
            run(one)
    graph.replay()
    times_ms: list[float] = []
    for _ in range(REPLAYS):
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times_ms.append(start.elapsed_time(end))
    return statistics.median(times_ms) * 1000 / len(inputs)


if __name__ == "__main__":
    main()
