"""Round trips of a layer's rows between two GPUs, with nobody computing anything.

What comes back for each pair is the row's own bytes, twice: as wide as an expert's answer, and checkable.
Mailboxes, NCCL pairs and NCCL's all-to-all, each in CUDA graphs. Knows nothing of models.

Letters: R rows  D hidden  K experts per row  P places of a row
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import globaltimer

from kernels.boxes import Inbox
from kernels.fp8_rows import Fp8Rows, quantize_rows
from kernels.mailbox import Posted, answer, collect
from router.nccl import ASKER, Pair
from router.shm_asker import AskerMailbox
from router.shm_expert import ExpertMailbox

WIDTH = 7168
PER_ROW = 8
TRIPS = 64  # in a graph
REPLAYS = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Trip:
    """Microseconds of one round trip: the mean in each graph's replay, and each trip by the GPU's clock."""

    p50_us: float
    p99_us: float
    single_p50_us: float
    single_p99_us: float

    def fields(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 2) for name in self.__slots__}


def echo(inbox: Inbox) -> None:
    """One turn of an expert actor whose experts are copies."""
    collect(inbox, torch.empty(0, dtype=torch.int32, device=inbox.heads.device))
    rows, per_row = inbox.experts.shape
    _echo[(rows, per_row)](
        inbox.rows.values_RK.view(torch.int32),
        inbox.experts,
        inbox.claimed,
        inbox.heads,
        inbox.back,
        inbox.capacity,
        D=WIDTH,
        K=per_row,
        PLACES=inbox.places,
        BLOCK=2048,
        num_warps=4,
    )
    answer(inbox)


@triton.jit(do_not_specialize=["capacity"])  # type: ignore[untyped-decorator,unused-ignore]
def _echo(  # type: ignore[no-untyped-def]
    values_ptr,  # noqa: ANN001
    experts_ptr,  # noqa: ANN001
    claimed_ptr,  # noqa: ANN001
    heads_ptr,  # noqa: ANN001
    back_ptr,  # noqa: ANN001
    capacity,  # noqa: ANN001
    D: tl.constexpr,
    K: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row, place = tl.program_id(0), tl.program_id(1)
    box = row // capacity
    if tl.load(claimed_ptr + box) == 0:
        return
    if row - box * capacity >= tl.load(heads_ptr + box * 8 + 2):
        return
    if tl.load(experts_ptr + row * K + place) < 0:
        return
    w = tl.arange(0, BLOCK)
    word = tl.load(values_ptr + row.to(tl.int64) * (D // 4) + w, mask=w < D // 4)
    address = tl.load(back_ptr + box * 2) + ((row - box * capacity) * PLACES + place).to(tl.int64) * (D * 2)
    out = tl.multiple_of(address.to(tl.pointer_type(tl.int32), bitcast=True), 16)
    tl.store(out + w, word, mask=w < D // 4)
    tl.store(out + D // 4 + w, word, mask=w < D // 4)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _stamp(times_ptr, at) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    tl.store(times_ptr + at, globaltimer())


def stamped(trip: Callable[[], None], times: Tensor) -> Callable[[], None]:
    """TRIPS trips with the clock's reading after each."""

    def run() -> None:
        for index in range(TRIPS):
            trip()
            _stamp[(1,)](times, index)

    return run


def repeated(trip: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(TRIPS):
            trip()

    return run


def timed(
    plain: torch.cuda.CUDAGraph, marked: torch.cuda.CUDAGraph, times: Tensor, meet: Callable[[], None]
) -> Trip:
    """Replay both graphs REPLAYS times; `meet` lets the other side begin its own at the same time."""
    means, singles = [], []
    for graph in (plain, marked):
        for _ in range(REPLAYS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            meet()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if graph is plain:
                means.append(start.elapsed_time(end) * 1e3 / TRIPS)
            else:
                singles += (times[1:] - times[:-1]).tolist()
    singles_us = sorted(single / 1e3 for single in singles)
    means.sort()
    return Trip(
        p50_us=statistics.median(means),
        p99_us=means[min(len(means) - 1, int(len(means) * 0.99))],
        single_p50_us=statistics.median(singles_us),
        single_p99_us=singles_us[int(len(singles_us) * 0.99)],
    )


def rows_and_experts(rows: int, device: torch.device) -> tuple[Fp8Rows, Tensor]:
    x = quantize_rows(torch.randn(rows, WIDTH, device=device))
    experts = torch.arange(PER_ROW, dtype=torch.int32, device=device).repeat(rows, 1)
    return x, experts


def mailbox_trip(asker: AskerMailbox, x: Fp8Rows, experts_RK: Tensor) -> Callable[[], None]:
    away = Posted(asker.outboxes[0])

    def trip() -> None:
        away.post(x, experts_RK, 0)
        away.wait()

    return trip


def mailbox_wrong(asker: AskerMailbox, x: Fp8Rows, experts_RK: Tensor, back: int) -> Callable[[Tensor], None]:
    """A trip with other rows than the one before, and every byte that came home compared."""
    rows = len(experts_RK)
    trip = mailbox_trip(asker, x, experts_RK)
    outbox = asker.outboxes[0]
    capacity, places = outbox.lanes.shape
    came = outbox.answers.view(torch.int32).view(outbox.num_lanes, capacity, places, 2, WIDTH // 4)
    words = x.values_RK.view(torch.int32)

    def run(wrong: Tensor) -> None:
        words.add_(0x01010101)
        trip()
        wrong.add_((came[1, :rows, :back] != words[:, None, None]).sum())

    return run


def served(expert: ExpertMailbox) -> Callable[[], None]:
    return lambda: echo(expert.inbox)


def pair_trip(
    pair: Pair, rank: int, rows: int, back: int, device: torch.device, *, both: bool
) -> Callable[[], None]:
    """Blocks of the same sizes through NCCL: rows out, answers back; both: in both directions at once."""
    out = torch.randint(0, 256, (rows * (WIDTH + WIDTH // 32),), dtype=torch.uint8, device=device)
    answers = torch.zeros(rows * back * WIDTH, dtype=torch.bfloat16, device=device)
    rows_in, answers_in = torch.empty_like(out), torch.empty_like(answers)

    def swap(sent: Tensor, received: Tensor) -> None:
        moves = [dist.P2POp(dist.isend, sent, 1 - rank), dist.P2POp(dist.irecv, received, 1 - rank)]
        for work in dist.batch_isend_irecv(moves):
            work.wait()

    def trip() -> None:
        if both:
            swap(out, rows_in)
            swap(answers, answers_in)
        elif rank == ASKER:
            pair.send(out)
            pair.receive(answers_in)
        else:
            pair.receive(rows_in)
            pair.send(answers)

    return trip


def all_to_all_trip(rows: int, back: int, device: torch.device) -> Callable[[], None]:
    """As expert parallelism does it: every row to both ranks, half of the answers from each."""
    out = torch.randint(0, 256, (2 * rows * (WIDTH + WIDTH // 32),), dtype=torch.uint8, device=device)
    answers = torch.zeros(2 * rows * back * WIDTH, dtype=torch.bfloat16, device=device)
    rows_in, answers_in = torch.empty_like(out), torch.empty_like(answers)

    def trip() -> None:
        dist.all_to_all_single(rows_in, out)
        dist.all_to_all_single(answers_in, answers)

    return trip


def table_of(trips: dict[str, dict[int, Any]], rows: list[int]) -> list[str]:
    """p50 / p99 us by transport and rows."""
    lines = ["us a round trip, p50/p99" + "".join(f"{count:>16}" for count in rows)]
    for name, by_rows in trips.items():
        cells = [by_rows.get(count, by_rows.get(str(count))) for count in rows]  # type: ignore[call-overload]
        words = [f"{c['p50_us']:.1f}/{c['single_p99_us']:.1f}" if c else "-" for c in cells]
        lines.append(f"{name:<24}" + "".join(f"{word:>16}" for word in words))
    return lines
