"""One of the two processes of bench.gpu_dispatch: decode steps of the true-width slice.

    python -m bench.gpu_steps PORT RANK ROWS,ROWS,... MOE_LAYERS CONTEXT EXPERTS MODE,MODE,...

One GPU with all experts (the reference, also for every bit); attention on one GPU and experts on the other,
one and two micro-batches; both on both, each with half of the experts and half of the rows; and weights that
travel meanwhile. Knows nothing of requests.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu_link import Joined, Link, captured, join, report
from bench.true_width import random_inputs
from kernels.expert_gemm import tile_rows_for
from kernels.mailbox import Posted
from model.cache import PAGE_TOKENS
from model.config import ModelConfig
from model.fp8_away import AwayStep
from model.fp8_cache import Fp8Cache
from model.fp8_random import RandomLayers
from model.fp8_shard import Fp8Shard, ServingUnit, last_expert, one_expert
from model.fp8_step import DecodeStep, StepInputs
from model.fp8_walk import WalkTables
from model.fp8_weights import Fp8Layer, Fp8Moe
from model.true_width import true_width
from router.cuda_memory import copy_between
from router.shm import Geometry

STEPS = 40
WARM_UP = 5
UNITS = 4  # turns of one launch of an expert actor
FIRST_S = 20.0
IDLE_S = 0.0002
LINGER_S = 0.00003
EXPERT_BYTES = 44_040_192
MOVED_EXPERTS = 192


@dataclass(frozen=True, kw_only=True)
class Mode:
    """own: both processes ask and serve, half of rows and experts each; else one asks and one serves."""

    name: str
    own: bool = False
    halves: int = 1
    moves: bool = False


MODES = {
    mode.name: mode
    for mode in (
        Mode(name="afd"),
        Mode(name="afd-halves", halves=2),
        Mode(name="afd-moves", moves=True),
        Mode(name="co-located", own=True),
        Mode(name="co-located-halves", own=True, halves=2),
    )
}


@dataclass
class Side:
    """What one process holds."""

    link: Link
    config: ModelConfig
    layers: list[Fp8Layer]
    norm_D: Tensor
    cache: Fp8Cache
    inputs: StepInputs  # of the most rows; fewer are the first of these, so that all write the same latents
    shard: Fp8Shard | None = None


def main() -> None:
    port, rank = int(sys.argv[1]), int(sys.argv[2])
    counts = [int(count) for count in sys.argv[3].split(",")]
    moe_layers, context, num_experts = map(int, sys.argv[4:7])
    link = Link(port, rank)
    with torch.inference_mode():
        config = true_width(moe_layers=moe_layers, num_experts=num_experts)
        run(link, counts, config, context, [MODES[name] for name in sys.argv[7].split(",")])
    sys.stdout.flush()
    os._exit(0)  # its memory is mapped elsewhere: nothing is gained by taking it down in order


def run(link: Link, counts: list[int], config: ModelConfig, context: int, modes: list[Mode]) -> None:
    start_s = time.monotonic()
    side = _make(link, config, max(counts), context)
    wanted = {rows: _alone(side, rows, context) for rows in counts}  # on both at once, so that each has it
    side.shard = _shard(side, list(range(0, config.num_experts, 1 if link.rank else 2)))
    report("made", rank=link.rank, seconds=round(time.monotonic() - start_s, 1))
    for mode in modes:
        for rows in counts[-1:] if mode.moves else counts:
            if rows >= (1 + mode.own) * mode.halves:
                _phase(side, rows, context, wanted[rows], mode)
    link.meet()


def _make(link: Link, config: ModelConfig, most_rows: int, context: int) -> Side:
    """The same noise in both processes."""
    torch.manual_seed(0)
    num_pages = most_rows * context // PAGE_TOKENS
    cache = Fp8Cache(config, num_pages, link.device)
    for latent, key in zip(cache.latents, cache.keys, strict=True):
        for plane in (latent.latent_SC, key.key_SI):
            plane.view(torch.uint8).random_(0, 256).bitwise_and_(0xDF).bitwise_or_(0x40)
        latent.scale_SG.fill_(2.0**-4)
        key.scale_S.fill_(2.0**-4)
        latent.rotary_SR.normal_()
    maker = RandomLayers(config, link.device)
    return Side(
        link=link,
        config=config,
        layers=[maker.layer(index) for index in range(config.num_layers)],
        norm_D=torch.ones(config.hidden_size, device=link.device),
        cache=cache,
        inputs=random_inputs(config, most_rows, context, num_pages),
    )


def _shard(side: Side, mine: list[int]) -> Fp8Shard:
    """The routed experts move from the layers into slots; the shared one stays."""
    shard = Fp8Shard(side.config, len(mine) * len(side.config.routed_layers), side.link.device)
    for index, layer in enumerate(side.layers):
        ffn = layer.ffn
        if not isinstance(ffn, Fp8Moe):
            continue
        for expert in mine:
            shard.fill(index, expert, one_expert(ffn.gate_up, expert), one_expert(ffn.down, expert))
        kept = replace(ffn, gate_up=last_expert(ffn.gate_up), down=last_expert(ffn.down))
        side.layers[index] = replace(layer, ffn=kept)
        del ffn, layer
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return shard


def _part(inputs: StepInputs, first: int, last: int) -> StepInputs:
    parts = {f.name: getattr(inputs, f.name)[first:last].clone() for f in fields(inputs)}
    return StepInputs(**parts)


def _stepping(side: Side, inputs: StepInputs, step: DecodeStep) -> Callable[[], Tensor]:
    embedded_RD = inputs.hidden_RD.clone()

    def run() -> Tensor:
        inputs.hidden_RD.copy_(embedded_RD)
        return step.run(side.layers, side.cache, side.norm_D)

    return run


def _tables(side: Side, context: int) -> WalkTables:
    return WalkTables(side.config, context, side.link.device)


def _alone(side: Side, rows: int, context: int) -> Tensor:
    """What all rows become with all experts at home."""
    inputs = _part(side.inputs, 0, rows)
    run = _stepping(side, inputs, DecodeStep(side.config, inputs, _tables(side, context)))
    for _ in range(2):
        out = run()

    def whole() -> None:
        run()

    ms = _launched(captured(whole), WARM_UP + STEPS, None)[WARM_UP:]
    if side.link.rank == 0:
        report("step", name="one GPU", rows=rows, ms=_median(ms), finite=bool(torch.isfinite(out).all()))
    return out.clone()


def _phase(side: Side, rows: int, context: int, wanted_RD: Tensor, mode: Mode) -> None:
    link, config, rank = side.link, side.config, side.link.rank
    share = rows // 2 if mode.own else rows
    geometry = Geometry(
        slots=mode.halves,
        capacity=share // mode.halves,
        width=config.hidden_size,
        per_row=config.num_experts_per_token,
        places=config.num_experts_per_token + 1,
    )
    shape = (config.num_layers, config.num_experts)
    asks, serves = mode.own or rank == 0, mode.own or rank == 1
    joined = join(link, geometry, shape, asks=asks, serves=serves, own=mode.own)
    pump = _Pump(side, joined, rows, mode) if serves else None
    source = link.memory.allocate(MOVED_EXPERTS * EXPERT_BYTES) if mode.moves and rank == 1 else None
    handle = link.swap(source.handle if source else b"-") if mode.moves else b""
    if asks:
        first = rank * share if mode.own else 0
        asking = _Asking(side, joined, mode, rows, context)
        _gather(link, "made", None)
        asking.run(pump)
        _gather(link, "ran", pump)
        graph = captured(asking.launch)
        _gather(link, "captured", pump)
        start_s = time.monotonic()
        ms = _launched(graph, WARM_UP + STEPS, pump)
        wall_s = time.monotonic() - start_s
        found = {
            "ms": _median(ms[WARM_UP:]),
            "most_ms": round(max(ms[WARM_UP:]), 3),
            "tokens_per_s": round(share * (WARM_UP + STEPS) / wall_s),
            "mismatch": asking.mismatch(wanted_RD[first : first + share]),
            "lost": int(asking.asker.lost.sum()),
        }
        if mode.moves:
            found |= _move(link, handle, graph)
        report("step", name=mode.name, rows=rows, rank=rank, **found)
    else:
        _gather(link, "made", None)
        _gather(link, "ran", pump)
        _gather(link, "captured", pump)
    _gather(link, "done", pump)
    if pump:
        pump.drain()
    link.meet()


class _Asking:
    """The step of one process whose experts are elsewhere, in one or two micro-batches."""

    def __init__(self, side: Side, joined: Joined, mode: Mode, rows: int, context: int) -> None:
        link, config = side.link, side.config
        assert joined.asker is not None, "it asks"
        self.asker = joined.asker
        self.asker.patience.fill_(round(FIRST_S * 1e9))
        share = rows // 2 if mode.own else rows
        each = share // mode.halves
        first = link.rank * share if mode.own else 0
        self._runs = []
        for half, outbox in enumerate(self.asker.outboxes):
            part = _part(side.inputs, first + half * each, first + (half + 1) * each)
            step = AwayStep(config, part, _tables(side, context), Posted(outbox))
            self._runs.append(_stepping(side, part, step))
        self._streams = [torch.cuda.Stream(link.device) for _ in self._runs]
        self._outs: list[Tensor] = []
        self.launch()  # nobody is asked yet: what is compiled or loaded while a kernel waits waits for it
        torch.cuda.synchronize()
        by_rank = (joined.me, joined.other) if link.rank == 0 else (joined.other, joined.me)
        owners = [by_rank[expert % 2 if mode.own else 1] for expert in range(config.num_experts)]
        self.asker.set_owners(dict.fromkeys(range(config.num_layers), owners))
        torch.cuda.synchronize()

    def launch(self) -> None:
        """Every half on a stream of its own."""
        here = torch.cuda.current_stream()
        self._outs = []
        for stream, run in zip(self._streams, self._runs, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                self._outs.append(run())
        for stream in self._streams:
            here.wait_stream(stream)

    def run(self, pump: _Pump | None) -> None:
        """Once, without a graph."""
        self.launch()
        done = torch.cuda.Event()
        done.record()
        if pump:
            pump.until(done.query)
        done.synchronize()

    def mismatch(self, wanted_RD: Tensor) -> int:
        """Values that differ from those of one GPU alone."""
        return int((torch.cat(self._outs) != wanted_RD).sum())


class _Pump:
    """Launches turns of this process's experts, two launches ahead."""

    def __init__(self, side: Side, joined: Joined, rows: int, mode: Mode) -> None:
        assert joined.expert is not None and side.shard is not None, "it serves"
        config = side.config
        self._unit = unit = ServingUnit(  # a graph keeps nothing alive that it reads and writes
            side.shard,
            joined.expert.inbox,
            tile_rows=tile_rows_for(rows * config.num_experts_per_token / config.num_experts),
            most_experts=config.num_experts // 2 if mode.own else config.num_experts,
        )
        joined.expert.set_timing(IDLE_S, LINGER_S)
        # Of high priority, and so from a pool of its own: torch gives the same 32 streams again and again,
        # and a turn that stood behind a step that waits for it would wait as well.
        self._stream = torch.cuda.Stream(side.link.device, priority=-1)
        with torch.cuda.stream(self._stream):
            unit.run()

        def turns() -> None:
            for _ in range(UNITS):
                unit.run()

        self._graph = captured(turns, self._stream)
        self._ahead: list[torch.cuda.Event] = []

    def until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self.turn()

    def drain(self) -> None:
        """No turn may outlive what it writes to."""
        self._stream.synchronize()

    def turn(self) -> None:
        if len(self._ahead) > 1:
            self._ahead.pop(0).synchronize()
        with torch.cuda.stream(self._stream):
            self._graph.replay()
            event = torch.cuda.Event()
            event.record()
        self._ahead.append(event)


def _gather(link: Link, name: str, pump: _Pump | None) -> None:
    """Until both are here; who serves, serves on."""
    link.store.set(f"{link.count}/{name}/{link.rank}", "-")
    other = f"{link.count}/{name}/{1 - link.rank}"
    if pump:
        pump.until(lambda: bool(link.store.check([other])))
    else:
        link.store.wait([other])


def _launched(graph: torch.cuda.CUDAGraph, count: int, pump: _Pump | None) -> list[float]:
    """ms of each replay; two are under way at most."""
    events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    for _ in range(count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        if events:
            before = events[-1][1]
            if pump:
                pump.until(before.query)
            before.synchronize()
        events.append((start, end))
    if pump:
        pump.until(events[-1][1].query)
    torch.cuda.current_stream().synchronize()
    return [start.elapsed_time(end) for start, end in events]


def _move(link: Link, handle: bytes, graph: torch.cuda.CUDAGraph) -> dict[str, Any]:
    """Experts' weights from the other GPU while steps go on: GB/s, and ms of the steps meanwhile."""
    peer = link.memory.open(handle)
    target = torch.empty(MOVED_EXPERTS * EXPERT_BYTES, dtype=torch.uint8, device=link.device)
    beside = torch.cuda.Stream(link.device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def copy() -> float:
        """GB/s, once it is through."""
        with torch.cuda.stream(beside):
            start.record()
            for at in range(0, MOVED_EXPERTS * EXPERT_BYTES, EXPERT_BYTES):
                copy_between(target.data_ptr() + at, peer.address + at, EXPERT_BYTES, beside)
            end.record()
        return MOVED_EXPERTS * EXPERT_BYTES / 1e6

    megabytes = copy()
    end.synchronize()
    alone = megabytes / start.elapsed_time(end)
    copy()
    meanwhile = []
    while not end.query():
        meanwhile += _launched(graph, 1, None)
    return {
        "copy_alone_gb_s": round(alone, 1),
        "copy_gb_s": round(megabytes / start.elapsed_time(end), 1),
        "copied_gb": round(megabytes / 1e3, 2),
        "copy_ms": round(start.elapsed_time(end), 2),
        "steps_meanwhile_ms": [round(ms, 2) for ms in meanwhile],
    }


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 3)


if __name__ == "__main__":
    main()
