"""A checkpoint of true width: written, brought to the GPU, and held against the CPU's reading of it.

    python -m bench.weights --directory DIR --out bench/results/weights.json

One dense and one MoE layer (16 GB). Says how quick each way is, whether the device holds the released values,
and how far a step on them is from the model in fp32 on the CPU; and, so that this says something, how far it
is when rotary rows are left as they were stored. Then how long an attention actor takes from its options to
its first answer. Knows nothing of sockets.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.build_gpu import build_gpu_runner
from actors.engine import Engine
from actors.expert_sources import Files, load_experts
from actors.held import HeldExperts
from actors.loopback import loopback_exchange
from actors.options import ActorOptions, AttentionOptions
from actors.scheduler import SchedulerLimits
from actors.step import forward
from bench.machine import command
from kernels.fp8_rows import GROUP, Fp8Weight
from kernels.rope import interleaved_to_half
from model.batch import Chunk
from model.cache import PAGE_TOKENS, LatentCache
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_load import load_fp8_model
from model.fp8_places import tensors_of_model
from model.fp8_random import random_model
from model.fp8_step import DecodeStep, StepInputs
from model.fp8_walk import WalkTables
from model.fp8_weights import Fp8Model, Fp8Moe
from model.load import load_decoder
from model.random_mark import write_mark
from model.sampling import Sampling
from model.true_width import true_width_json, write_true_width

TOKENS = 48
CHOSEN = [0, 1, 32, 33, 64, 65, 96, 97]  # two of each of four groups: noise in FP8 cannot change the routing
DEVICE = torch.device("cuda")
GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)
ATTENTION = AttentionOptions(
    local=True,
    context_tokens=1024,
    cache_tokens=4096,
    chunk_tokens=128,
    max_sequences=4,
    prefix_cache=True,
    max_queue=4,
    micro_batches=1,
    threads=1,
    answer_timeout_s=10.0,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 8, 16])
    given = parser.parse_args()
    found: dict[str, Any] = {
        "command": command("bench.weights"),
        "torch": torch.__version__,
        "card": torch.cuda.get_device_name(),
    }
    stages: list[Callable[[], dict[str, Any]]] = [
        lambda: write(given.directory),
        lambda: from_nothing(given.directory),
        *(lambda threads=threads: from_files(given.directory, threads) for threads in given.threads),
        lambda: compare(given.directory),
        lambda: answer("from_files", given.directory),
        lambda: answer("from_nothing", noise_directory(given.directory)),
    ]
    for stage in stages:
        try:
            result = stage()
        except Exception:  # noqa: BLE001 - what the others find is worth having
            result = {f"failed at {time.monotonic():.0f}": traceback.format_exc()}
        sys.stdout.write(json.dumps(result).replace("\\n", "\n") + "\n")
        sys.stdout.flush()
        found |= result
        torch.cuda.empty_cache()
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")


def write(directory: Path) -> dict[str, Any]:
    start_s = time.perf_counter()
    told: list[int] = []
    raw = true_width_json(layers=2, mtp=False)
    write_true_width(directory, raw, seed=0, progress=lambda _, total: told.append(total))
    return _rate("write", told[-1], start_s)


def from_nothing(directory: Path) -> dict[str, Any]:
    checkpoint = Checkpoint.open(directory)
    random_model(replace(checkpoint.config, num_layers=1), DEVICE)  # so that kernels and memory are there
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    random_model(checkpoint.config, DEVICE)
    torch.cuda.synchronize()
    return _rate("random", checkpoint.stored_bytes(tensors_of_model(checkpoint.config)), start_s)


def from_files(directory: Path, threads: int) -> dict[str, Any]:
    checkpoint = Checkpoint.open(directory)
    reader = checkpoint.reader()
    start_s = time.perf_counter()
    load_fp8_model(reader, checkpoint.config, DEVICE, threads)
    torch.cuda.synchronize()
    return _rate(f"load_{threads}_threads", reader.bytes_read, start_s)


def compare(directory: Path) -> dict[str, Any]:
    """Values, and a step over one sequence's tokens."""
    checkpoint = Checkpoint.open(directory)
    config = checkpoint.config
    model = load_fp8_model(checkpoint.reader(), config, DEVICE)
    differing = [name for name, found, wanted in _pairs(checkpoint, model) if not torch.equal(found, wanted)]
    ids = torch.randint(0, config.vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(3))
    wanted_TD = on_the_cpu(checkpoint, ids)
    right = _relative_error(on_the_gpu(config, model, ids), wanted_TD)
    for layer in model.layers:
        _interleave(config, layer.attention.up, config.num_heads, config.qk_head_dim)
    wrong = _relative_error(on_the_gpu(config, model, ids), wanted_TD)
    return {"tensors_that_differ": differing, "step_error": right, "step_error_rotary_as_stored": wrong}


@torch.inference_mode()
def on_the_cpu(checkpoint: Checkpoint, ids: Tensor) -> Tensor:
    """fp32 [T, D] after the last norm, of the experts CHOSEN."""
    config, reader = checkpoint.config, checkpoint.reader()
    decoder = load_decoder(reader, config, torch.float32, 64)
    held = HeldExperts(config, torch.float32)
    pairs = [(layer, expert) for layer in config.routed_layers for expert in CHOSEN]
    load_experts(held, [Files(lambda: reader, torch.float32)], pairs)
    for layer in decoder.layers:
        if layer.gate is not None:
            layer.gate._bias_E[CHOSEN] = 10.0
    chunk = Chunk(token_ids=ids.tolist(), start=0, pages=[1], wants_logits=True)
    cache = LatentCache(config, 2, torch.float32)
    return forward(decoder, [chunk], cache, loopback_exchange(config, "itself", held.forward))


@torch.inference_mode()
def on_the_gpu(config: ModelConfig, model: Fp8Model, ids: Tensor) -> Tensor:
    """[T, D] after the last norm: all tokens as rows of one step."""
    for layer in model.layers:
        if isinstance(layer.ffn, Fp8Moe):
            layer.ffn.bias_E[CHOSEN] = 10.0
    positions_R = torch.arange(len(ids), dtype=torch.int32, device=DEVICE)
    inputs = StepInputs(
        hidden_RD=model.embedding_VD[ids.to(DEVICE)],
        positions_R=positions_R,
        slots_R=positions_R + PAGE_TOKENS,  # page 1
        lengths_R=positions_R + 1,
        pages_RP=torch.ones(len(ids), 1, dtype=torch.int32, device=DEVICE),
    )
    step = DecodeStep(config, inputs, WalkTables(config, 64, DEVICE))
    return step.run(model.layers, Fp8Cache(config, 2, DEVICE), model.last_norm_D).float().cpu()


def noise_directory(directory: Path) -> Path:
    """Of a model without weights."""
    noise = directory / "noise"
    write_mark(noise, true_width_json(layers=2, mtp=True), seed=0)
    return noise


@torch.inference_mode()
def answer(name: str, directory: Path) -> dict[str, Any]:
    """From options to an answer, as actors/build.py goes; then the same again, its prompt in the cache."""
    drafts = int(name == "from_nothing")
    limits = SchedulerLimits(max_sequences=4, chunk_tokens=128, max_step_tokens=264)
    start_s = time.perf_counter()
    runner, config, _ = build_gpu_runner(_options(directory, drafts), ATTENTION, limits, lambda _: None)
    ready_s = time.perf_counter() - start_s
    engine = Engine(runner, context_tokens=ATTENTION.context_tokens, limits=limits)
    prompt = torch.randint(2, config.vocab_size, (300,), generator=torch.Generator().manual_seed(5)).tolist()
    start_s, said = time.perf_counter(), [_generate(engine, str(turn), prompt) for turn in range(2)]
    if said[0] != said[1] or len(said[0]) != GREEDY.max_tokens:
        raise AssertionError(f"{name}: {said}")
    seconds = {"ready_s": round(ready_s, 1), "answers_s": round(time.perf_counter() - start_s, 2)}
    return {name: {**seconds, "drafts": runner.draft_tokens, "tokens": said[0][:8]}}


def _generate(engine: Engine, request_id: str, prompt: list[int]) -> list[int]:
    refused = engine.submit("bench", request_id, prompt, [], GREEDY)
    if refused is not None:
        raise AssertionError(refused)
    tokens: list[int] = []
    while engine.has_work:
        for events in engine.step().values():
            tokens += [token for event in events for token in event.token_ids]
    return tokens


def _options(directory: Path, draft_tokens: int) -> ActorOptions:
    return ActorOptions(
        actor_id="attention-0",
        incarnation=1,
        directory=str(directory),
        dtype="fp8",
        host="127.0.0.1",
        token=b"",
        draft_tokens=draft_tokens,
        device="cuda",
    )


def _pairs(checkpoint: Checkpoint, model: Fp8Model) -> list[tuple[str, Tensor, Tensor]]:
    """(name, as the device holds it, as the CPU reads it) of some tensors, de-quantised."""
    config, reader = checkpoint.config, checkpoint.reader()
    half = interleaved_to_half(config.qk_rope_head_dim)
    last, prefix = model.layers[-1], f"model.layers.{config.num_layers - 1}"
    assert isinstance(last.ffn, Fp8Moe), "the last layer routes"

    def read(name: str) -> Tensor:
        return reader.read(f"{prefix}.{name}.weight", torch.float32)

    down, up = last.attention.down.float().cpu(), last.attention.up.float().cpu()
    expert = Fp8Weight(last.ffn.gate_up.values_NK[97], last.ffn.gate_up.scale_NK[97]).float().cpu()
    key = read("self_attn.kv_a_proj_with_mqa")
    query = read("self_attn.q_b_proj").view(config.num_heads, config.qk_head_dim, -1)
    query[:, config.qk_nope_head_dim :] = query[:, config.qk_nope_head_dim :][:, half].clone()
    key[config.kv_lora_rank :] = key[config.kv_lora_rank :][half].clone()
    at, width = config.q_lora_rank or 0, config.moe_intermediate_size
    return [
        ("q_a", down[:at], read("self_attn.q_a_proj")),
        ("kv_a", down[at : at + config.latent_dim], key),
        ("wk", down[-GROUP:], read("self_attn.indexer.wk")),
        ("q_b", up[: config.num_heads * config.qk_head_dim], query.flatten(0, 1)),
        ("wq_b", up[config.num_heads * config.qk_head_dim :], read("self_attn.indexer.wq_b")),
        ("gate", expert[:width], read("mlp.experts.97.gate_proj")),
        ("up", expert[width:], read("mlp.experts.97.up_proj")),
        ("head", model.head_VD.float().cpu(), reader.read("lm_head.weight", torch.float32)),
    ]


def _interleave(config: ModelConfig, weight: Fp8Weight, heads: int, width: int) -> None:
    """Undo the loader's order: a wrong model, to see that the comparison would see one."""
    values = weight.values_NK.view(torch.uint8)[: heads * width].view(heads, width, -1)
    stored = torch.argsort(interleaved_to_half(config.qk_rope_head_dim)).to(values.device)
    rotary = values[:, config.qk_nope_head_dim :]
    rotary.copy_(rotary[:, stored].clone())


def _relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _rate(name: str, num_bytes: int, start_s: float) -> dict[str, Any]:
    seconds = time.perf_counter() - start_s
    return {name: {"seconds": round(seconds, 2), "gb_per_s": round(num_bytes / seconds / 1e9, 2)}}


if __name__ == "__main__":
    main()
