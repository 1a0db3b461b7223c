"""The whole engine on one GPU: whether it is exact, and how quick.

    python -m bench.engine --out bench/results/engine.json

A random model of DeepSeek-V3.2's true width, one dense and a few MoE layers and the MTP layer, with its ends:
requests go in, tokens come out. Answers mean nothing, but the bits of a token may depend on its request alone
(bench/engine_checks.py); then decode and prefill (bench/engine_speed.py). Knows nothing of HTTP.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from actors.fp8_runner import Fp8Parts, fp8_parts
from actors.scheduler import SchedulerLimits
from bench.engine_checks import Checks
from bench.engine_speed import DecodeSpeed, chunk_ms, prefill
from bench.parts import Report
from kernels.greedy import CHUNK, greedy, greedy_reference
from model.cache import PAGE_TOKENS
from model.fp8_random import random_model
from model.true_width import true_width

SEQUENCES = (1, 16, 64, 128)
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moe-layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=4096, help="of decoding sequences")
    parser.add_argument("--chunk", type=int, default=2048, help="tokens of a prompt in a step")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, steps and layers")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    report = Report("bench.engine", given.out)
    limits = limits_of(128, given.chunk)
    if given.quick:
        limits = limits_of(16, 128)
    parts = build(report, limits, 1 if given.quick else given.moe_layers, given.context)
    for name, check in Checks(parts, limits).all().items():
        report.part(f"exact: {name}", check)
    report.part("draws", lambda: compare_draws(parts))
    speed = DecodeSpeed(parts, limits, given.context, 10 if given.quick else 40)
    for sequences in SEQUENCES:
        if sequences <= limits.max_sequences:
            report.part(f"decode {sequences}", partial(speed.plain, sequences))
            report.part(f"decode {sequences}, every draft right", partial(speed.drafted, sequences))
            report.part(f"decode {sequences}, sampled", partial(speed.sampled, sequences))
    prompts = 1 if given.quick else 16
    for chunk in sorted({128, 512, limits.chunk_tokens}):
        if chunk <= limits.chunk_tokens:
            smaller = replace(limits, chunk_tokens=chunk)
            report.part(f"prefill by {chunk}", partial(prefill, parts, smaller, prompts, given.context))
    for chunk in (128, 512, 2048):
        if chunk <= limits.chunk_tokens and limits.max_sequences >= 64:
            report.part(f"64 decode beside chunks of {chunk}", partial(speed.beside_prompts, 64, chunk))
    report.part("a chunk by rows or as a chunk", lambda: chunk_ms(parts))
    report.part("compiled after warm-up", lambda: not_late(parts))
    report.say("all parts done" if not report.failed else f"{report.failed} parts FAILED")
    sys.exit(bool(report.failed))


def limits_of(sequences: int, chunk: int) -> SchedulerLimits:
    """As actors/build.py, with a draft of each sequence."""
    return SchedulerLimits(
        max_sequences=sequences, chunk_tokens=chunk, max_step_tokens=2 * sequences + 2 * chunk
    )


def build(report: Report, limits: SchedulerLimits, moe_layers: int, context: int) -> Fp8Parts:
    """Model, cache and graphs; without them there is nothing to go on with."""
    device = torch.device("cuda")
    report.figures |= {"card": torch.cuda.get_device_name(), "torch": torch.__version__}
    config = true_width(moe_layers=moe_layers, mtp=True)
    start_s = time.perf_counter()
    model = random_model(config, device)
    torch.cuda.synchronize()
    report.part("model", lambda: {"gib": _used_gib(), "seconds": round(time.perf_counter() - start_s, 2)})
    positions, enough = context + 4 * PAGE_TOKENS, 1 + limits.max_sequences * (context // PAGE_TOKENS + 3)
    parts: list[Fp8Parts] = []

    def start(num_pages: int | None) -> dict[str, float]:
        start_s = time.perf_counter()
        made = fp8_parts(config, model, limits, num_pages=num_pages, context_tokens=positions, draft_tokens=1)
        with_cache = _used_gib()
        made.runner(draft_tokens=1)
        parts.append(made)
        return {
            "pages": made.cache.num_pages,
            "cache_gib": round(made.cache.num_pages * PAGE_TOKENS * made.cache.bytes_per_token / GIB, 2),
            "graphs_gib": round(_used_gib() - with_cache, 2),
            "free_gib": round(torch.cuda.mem_get_info()[0] / GIB, 2),
            "compile_and_capture_s": round(time.perf_counter() - start_s, 2),
        }

    report.part("start with all memory", lambda: start(None))
    if not parts:
        torch.cuda.empty_cache()
        report.part("start with enough pages", lambda: start(enough))
    return parts[0]


def _used_gib() -> float:
    free, total = torch.cuda.mem_get_info()
    return round((total - free) / GIB, 2)


@torch.inference_mode()
def compare_draws(parts: Fp8Parts) -> dict[str, float]:
    """The head's product beside fp32, and the drawn tokens beside those of the reference."""
    buffers, rows = parts.buffers, min(16, parts.buffers.most_draws)
    buffers.hidden_RD.normal_()
    parts.graphs.draw(rows)
    tokens_R, logprobs_R, finite_R = buffers.drawn_3R[:, :rows]
    wanted_R, wanted_logprobs_R, _ = greedy_reference(buffers.logits_RV[:rows])
    assert torch.equal(tokens_R.long(), wanted_R) and finite_R.all()
    hidden_RD = buffers.hidden_RD.index_select(0, buffers.places(rows))
    product_RV = hidden_RD.float() @ parts.model.head_VD.float().t()
    error = (buffers.logits_RV[:rows] - product_RV).norm() / product_RV.norm()
    assert error < 1e-2, error
    return {
        "logits_error": float(error),
        "logprobs_error": float((logprobs_R.view(torch.float32) - wanted_logprobs_R).abs().max()),
    }


def not_late(parts: Fp8Parts) -> str:
    late = parts.graphs.late_compilations
    assert late == 0, f"{late} kernels"
    wide_RV = torch.zeros(1, 100 * CHUNK, device="cuda")  # no model's
    out_3R = torch.zeros(3, 1, dtype=torch.int32, device="cuda")
    greedy(wide_RV, out_3R[0], out_3R[1].view(torch.float32), out_3R[2])
    assert parts.graphs.late_compilations > 0, "the counter does not count"
    return "nothing, and the counter counts"


if __name__ == "__main__":
    main()
