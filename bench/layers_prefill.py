"""Prefill of the slice that bench.layers decodes: prompts in chunks, as a server would send them.

Knows nothing of the command line.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.true_width import Slice
from model.cache import PAGE_TOKENS
from model.fp8_prefill import PrefillStep, Span
from model.fp8_walk import WalkTables

# tokens/s of vLLM 0.26.0 for the same slice on the same card, with its better kernels for experts.
PEER_TOKENS_S = {4096: 74_400, 32768: 56_000}
# Ceilings of an H200: FP8 as the best public kernels reach it, 16 bits as measured.
FP8_FLOPS, HALF_FLOPS = 1500e12, 790e12
TIMES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    spans: tuple[Span, ...]
    rows: int


def chunks_of(num_prompts: int, length: int, most_rows: int) -> list[Chunk]:
    """Prompts one after the other, each on pages of its own; a chunk is full unless it is the last."""
    pages = length // PAGE_TOKENS
    order_P = torch.randperm(num_prompts * pages, device="cuda").int()
    chunks, spans, rows = [], [], 0
    for prompt in range(num_prompts):
        pages_P = order_P[prompt * pages : (prompt + 1) * pages]
        position = 0
        while position < length:
            taken = min(length - position, most_rows - rows)
            spans.append(Span(first_row=rows, num_rows=taken, first_position=position, pages_P=pages_P))
            position, rows = position + taken, rows + taken
            if rows == most_rows:
                chunks.append(Chunk(spans=tuple(spans), rows=rows))
                spans, rows = [], 0
    return chunks + ([Chunk(spans=tuple(spans), rows=rows)] if rows else [])


@torch.inference_mode()
def measure_prefill(
    model: Slice,
    num_prompts: int,
    length: int,
    most_rows: int,
    *,
    exact: bool,
    kernel_times: Callable[[Callable[[], None]], dict[str, float]] | None,
) -> dict[str, Any]:
    """Median tokens/s; kernel_times: what tells us by kernel of one pass, if it is wanted."""
    torch.manual_seed(length)
    chunks = chunks_of(num_prompts, length, most_rows)
    step = PrefillStep(
        model.config, most_rows, WalkTables(model.config, length, torch.device("cuda")), exact=exact
    )
    embedded_RD = torch.randn(most_rows, model.config.hidden_size, device="cuda").bfloat16()
    hidden_RD = embedded_RD.clone()

    def run() -> None:
        for chunk in chunks:
            hidden_RD.copy_(embedded_RD)
            step.run(hidden_RD[: chunk.rows], chunk.spans, model.layers, model.cache, model.last_norm_D)

    tokens = num_prompts * length
    run()
    seconds = statistics.median(_seconds(run) for _ in range(TIMES))
    floor_s = tokens * floor_seconds(model, length)
    result: dict[str, Any] = {
        "prompts": num_prompts,
        "length": length,
        "chunk": most_rows,
        "mode": "exact" if exact else "throughput",
        "tokens_s": tokens / seconds,
        "finite": bool(torch.isfinite(hidden_RD).all()),
        "peer_tokens_s": PEER_TOKENS_S.get(length),
        "floor_tokens_s": tokens / floor_s,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    if kernel_times is not None:
        result["kernels_us"] = kernel_times(run)
    return result


def floor_seconds(model: Slice, length: int) -> float:
    """Of a token of prompts of this length: its operations over the ceilings, weights read for nothing.

    Tokens that see all there is attend over keys and values of every head, the others in latent space.
    """
    config = model.config
    assert config.indexer is not None
    heads, latent, hidden = config.num_heads, config.kv_lora_rank, config.hidden_size
    dense = min(length, config.indexer.topk)  # tokens that see all
    seen_dense, seen_chosen = dense * (dense + 1) / 2 / length, dense * (length - dense) / length
    kv_b = heads * latent * (config.qk_nope_head_dim + config.v_head_dim)
    scored = config.indexer.num_heads * config.indexer.head_dim * (length + 1) / 2
    weights = model.layers[0].attention
    products = sum(weight.values_NK.numel() for weight in (weights.down, weights.up, weights.out))
    attention_fp8 = products + scored + kv_b * dense / length
    by_heads = seen_dense * (config.qk_head_dim + config.v_head_dim)
    by_latents = seen_chosen * (config.latent_dim + latent)
    attention_half = kv_b * (1 - dense / length) + heads * (by_heads + by_latents)
    networks = config.num_dense_layers * 3 * config.intermediate_size * hidden
    taken = config.num_experts_per_token + config.num_shared_experts
    moe_layers = config.num_layers - config.num_dense_layers
    networks += moe_layers * taken * 3 * config.moe_intermediate_size * hidden
    fp8 = config.num_layers * attention_fp8 + networks
    return 2 * (fp8 / FP8_FLOPS + config.num_layers * attention_half / HALF_FLOPS)


def line_of_prefill(result: dict[str, Any]) -> str:
    rate, floor, peer = result["tokens_s"], result["floor_tokens_s"], result["peer_tokens_s"]
    beside = f"  vLLM {peer:,}" if peer else ""
    return (
        f"{result['prompts']:>3} prompts of {result['length']:<6} by {result['chunk']:<6}{result['mode']:<11}"
        f"{rate:9,.0f} tokens/s  floor {floor:,.0f} ({rate / floor:.0%}){beside}"
    )


def _seconds(run: Callable[[], None]) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
