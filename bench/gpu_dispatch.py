"""Experts on another GPU of the same host: what the way there costs, and what a death on it does.

    python -m bench.gpu_dispatch --out bench/results/gpu_dispatch.json

Needs two GPUs. Every part runs in processes of its own that are ended at their limit, so that one that hangs
spoils nothing else. Knows nothing of what they measure: bench/gpu_trips.py, gpu_steps.py, gpu_faults.py.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.machine import command, describe

# NVLink multicast stays off (a machine's GPUs may be shared); an abort must not end the process.
ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "PYTHONUNBUFFERED": "1",
}
PARTS = ("faults", "trips", "steps")
Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 128, 256])
    parser.add_argument("--step-rows", type=int, nargs="+", default=[1, 16, 64, 128])
    parser.add_argument("--moe-layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--modes", default="afd,afd-halves,afd-moves,co-located,co-located-halves")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=19, help="expert actors that start together")
    parser.add_argument("--limit-s", type=float, default=85.0, help="of each part")
    parser.add_argument("--out", type=Path, help="JSON file; a picture beside it")
    given = parser.parse_args()
    results: list[Result] = []
    for part in given.parts:
        began_s = time.monotonic()
        results += list(_run(_commands(part, given), given.limit_s))
        results.append({"kind": "part", "name": part, "seconds": round(time.monotonic() - began_s, 1)})
        _write(results, given.out)
    sys.stdout.write("\n".join(summary(results)) + "\n")


def _write(results: list[Result], out: Path | None) -> None:
    """After every part, so that a later one can take nothing away."""
    report: Result = {"command": command("bench.gpu_dispatch"), "machine": describe()}
    report |= {"card": torch.cuda.get_device_name(), "cards": torch.cuda.device_count()}
    report |= {"torch": torch.__version__, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    report |= {"results": results}
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")


def _commands(part: str, given: argparse.Namespace) -> list[list[str]]:
    """One for each process."""
    if part == "faults":
        start = [sys.executable, "-m", "bench.gpu_faults", "asker"]
        return [[*start, str(given.kills), str(given.stops), str(given.at_once)]]
    start = [sys.executable, "-m", "bench.gpu_trips" if part == "trips" else "bench.gpu_steps"]
    rows = ",".join(map(str, given.rows if part == "trips" else given.step_rows))
    more = [] if part == "trips" else [str(given.moe_layers), str(given.context), "256", given.modes]
    port = str(_free_port())
    return [[*start, port, str(rank), rows, *more] for rank in range(2)]


def _run(commands: list[list[str]], limit_s: float) -> Iterator[Result]:
    """What the processes report, until all have ended; at their limit, or when one fails, all are killed."""
    environment = os.environ | ENVIRONMENT
    lines: list[str] = []
    processes = [
        subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for one in commands
    ]
    errors: list[str] = []
    readers = [
        threading.Thread(target=into.extend, args=(stream,))
        for process in processes
        for into, stream in ((lines, process.stdout), (errors, process.stderr))
    ]
    for reader in readers:
        reader.start()
    until_s = time.monotonic() + limit_s
    why = ""
    while not why and any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if time.monotonic() > until_s:
            why = f"not done within {limit_s:g} s"
        elif any(process.poll() not in (None, 0, -signal.SIGKILL) for process in processes):
            time.sleep(1.0)
            why = f"ended with {[process.poll() for process in processes]}"
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()
    for reader in readers:
        reader.join(5.0)
    yield from (json.loads(line) for line in lines if line.startswith("{"))
    if why:
        yield {"kind": "trouble", "command": commands[0][2:4], "why": why, "said": errors[-60:]}


def summary(results: list[Result]) -> list[str]:
    """Tables for people."""
    lines: list[str] = []
    trips = [one for one in results if one["kind"] == "trip"]
    counts = sorted({one["rows"] for one in trips})
    lines.append("round trip us: mean of a graph's p50 / single trip p50 / p99, by rows")
    lines.append(f"{'':<26}" + "".join(f"{count:>22}" for count in counts))
    for name in dict.fromkeys(one["name"] for one in trips):
        cells = []
        for count in counts:
            own = [one for one in trips if one["name"] == name and one["rows"] == count and one["rank"] == 0]
            cells.append(_trip_words(own[0]) if own else "-")
        lines.append(f"{name:<26}" + "".join(f"{cell:>22}" for cell in cells))
    lines += [json.dumps(one) for one in results if one["kind"] not in ("trip", "trial", "trouble")]
    lines += _fault_lines([one for one in results if one["kind"] == "trial"])
    for one in results:
        if one["kind"] == "trouble":
            lines.append(f"TROUBLE {one['command']}: {one['why']}")
            lines += [line.rstrip()[:300] for line in one["said"]]
    return lines


def _trip_words(one: Result) -> str:
    if "error" in one:
        return "error"
    wrong = f"!{one['wrong']}" if one.get("wrong") or one.get("lost") else ""
    return f"{one['p50_us']:.1f}/{one['single_p50_us']:.1f}/{one['single_p99_us']:.1f}{wrong}"


def _fault_lines(trials: list[Result]) -> list[str]:
    lines = []
    for name in dict.fromkeys(one["signal"] for one in trials):
        own = [one for one in trials if one["signal"] == name]
        words = [f"{name}: {len(own)} trials, identical {sum(one['identical'] for one in own)}"]
        for key in ("heard_ms", "found_ms", "done_ms", "again_ms", "steady_ms"):
            values = [one[key] for one in own if one[key] is not None]
            if values:
                words.append(
                    f"{key} p50 {statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"
                )
        lines.append(", ".join(words))
    return lines


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
