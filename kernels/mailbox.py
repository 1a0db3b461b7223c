"""Rows between GPUs of one host, by stores and flags alone.

An asker writes rows into the box that an expert actor gave it, in that actor's memory, then a sequence number
that releases them; the actor's experts write their rows straight into the asker's memory, then the number
back. Both wait for a bounded time, on flags in their own memory. The host takes no part, so all of it stands
in CUDA graphs; who is asked stands in tables on the device, so that a new view captures nothing anew. Knows
nothing of processes: addresses come from router/shm.py.

Letters: R rows  D hidden  G groups of a row  K experts of a row  P places of a row (K, and the shared one's)
B boxes  L lanes  W words
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import globaltimer

from kernels.boxes import Inbox, Outbox
from kernels.fp8_rows import GROUP, Fp8Rows
from kernels.routes import Routes


class Posted:
    """The way out and back of one micro-batch, by the two kernels of an asker."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox

    def post(self, rows: Fp8Rows, experts_RK: Tensor, layer: int) -> None:
        post(rows, experts_RK, layer, self.outbox)

    def wait(self) -> None:
        wait(self.outbox)


def post(rows: Fp8Rows, experts_RK: Tensor, layer: int, outbox: Outbox) -> None:
    """Send each row to the lanes that own its experts, and note which place is whose.

    Every lane that is asked gets a parcel, be it of no rows: it owes an answer.
    """
    rows.check("rows")
    num_rows, hidden = rows.values_RK.shape
    if num_rows > len(outbox.lanes):
        raise ValueError(f"{num_rows} rows for boxes of {len(outbox.lanes)}")
    _post[(num_rows, outbox.num_lanes - 1)](
        rows.values_RK.view(torch.int32),
        rows.scale_GR,
        experts_RK,
        outbox.owners[layer],
        outbox.asked,
        outbox.sequence,
        outbox.lost,
        outbox.arrived,
        outbox.lanes,
        num_rows,
        layer,
        rows.scale_GR.stride(0),
        D=hidden,
        E=outbox.owners.shape[1],
        K=experts_RK.shape[1],
        PLACES=outbox.lanes.shape[1],
        BLOCK_W=triton.next_power_of_2(hidden // 4),
        BLOCK_G=triton.next_power_of_2(hidden // GROUP),
        num_warps=4,
    )


def wait(outbox: Outbox) -> None:
    """Until every lane that was asked has answered, or is lost; then the next parcel may be posted."""
    _wait[(1,)](
        outbox.words,
        outbox.asked,
        outbox.sequence,
        outbox.lost,
        outbox.patience,
        LANES=outbox.num_lanes,
        num_warps=1,
    )


def collect(inbox: Inbox, counts: Tensor) -> None:
    """Claim what has arrived, after a bounded wait; zero the counts of the routes that are made next."""
    _collect[(1,)](
        inbox.heads,
        inbox.served,
        inbox.claimed,
        inbox.timing,
        counts,
        len(counts),
        BOXES=inbox.num_boxes,
        BLOCK_B=max(2, triton.next_power_of_2(inbox.num_boxes)),
        num_warps=1,
    )


def route(inbox: Inbox, table: Tensor, routes: Routes) -> None:
    """The routes of all claimed parcels. table: int32 [layers, E], the slot of an expert here, -1: not held.

    A parcel that asks for what is not held is marked as refused.
    """
    if routes.pairs_per_row != inbox.places or routes.capacity < len(inbox.experts):
        raise ValueError(
            f"routes hold {routes.capacity} rows of {routes.pairs_per_row} places: the inbox has "
            f"{len(inbox.experts)} of {inbox.places}"
        )
    _route[(len(inbox.experts),)](
        inbox.heads,
        inbox.claimed,
        inbox.refused,
        inbox.experts,
        table,
        routes.counts,
        routes.tiles,
        routes.pairs_EC,
        inbox.capacity,
        routes.capacity,
        routes.num_experts,
        LAYERS=table.shape[0],
        E=table.shape[1],
        K=inbox.experts.shape[1],
        PLACES=inbox.places,
        TILE=routes.tile_rows,
        num_warps=1,
    )


def answer(inbox: Inbox) -> None:
    """Tell the askers of claimed parcels that their rows are written."""
    _answer[(1,)](
        inbox.claimed,
        inbox.refused,
        inbox.served,
        inbox.back,
        BOXES=inbox.num_boxes,
        BLOCK_B=max(2, triton.next_power_of_2(inbox.num_boxes)),
        num_warps=1,
    )


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _now():  # type: ignore[no-untyped-def]  # noqa: ANN202
    """int64: nanoseconds."""
    return globaltimer()


@triton.jit(do_not_specialize=["rows", "layer"])  # type: ignore[untyped-decorator,unused-ignore]
def _post(  # type: ignore[no-untyped-def]
    values_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    experts_ptr,  # noqa: ANN001
    owners_ptr,  # noqa: ANN001
    asked_ptr,  # noqa: ANN001
    sequence_ptr,  # noqa: ANN001
    lost_ptr,  # noqa: ANN001
    arrived_ptr,  # noqa: ANN001
    lanes_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    layer,  # noqa: ANN001
    scale_stride,  # noqa: ANN001
    D: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    PLACES: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_G: tl.constexpr,
) -> None:
    WORDS: tl.constexpr = 8
    row = tl.program_id(0)
    lane = tl.program_id(1) + 1
    k = tl.arange(0, K)
    expert = tl.load(experts_ptr + row * K + k)
    owner = tl.load(owners_ptr + expert, mask=(expert >= 0) & (expert < E), other=0)
    if lane == 1:
        tl.store(lanes_ptr + row * PLACES + k, owner)
    asked = asked_ptr + lane * WORDS
    head = tl.load(asked + 3)
    if head == 0:
        return
    if tl.load(lost_ptr + lane) != 0:
        return
    own = owner == lane
    to_experts = tl.load(asked + 2).to(tl.pointer_type(tl.int32), bitcast=True)
    tl.store(to_experts + row * K + k, tl.where(own, expert, -1))
    if tl.sum(own.to(tl.int32), axis=0) > 0:
        w = tl.arange(0, BLOCK_W)
        word = tl.load(values_ptr + row * (D // 4) + w, mask=w < D // 4)
        to_values = tl.load(asked + 0).to(tl.pointer_type(tl.int32), bitcast=True)
        tl.store(tl.multiple_of(to_values, 16) + row * (D // 4) + w, word, mask=w < D // 4)
        g = tl.arange(0, BLOCK_G)
        scale = tl.load(scale_ptr + g * scale_stride + row, mask=g < D // 128)
        to_scales = tl.load(asked + 1).to(tl.pointer_type(tl.float32), bitcast=True)
        tl.store(to_scales + g * tl.load(asked + 4) + row, scale, mask=g < D // 128)
    tl.debug_barrier()  # the rows of all threads, before one of them counts this program in
    if tl.atomic_add(arrived_ptr + lane, 1, sem="acq_rel", scope="gpu") == rows - 1:
        tl.store(arrived_ptr + lane, 0)
        to_head = head.to(tl.pointer_type(tl.int64), bitcast=True)
        tl.store(to_head + 1, layer.to(tl.int64))
        tl.store(to_head + 2, rows.to(tl.int64))
        tl.debug_barrier()
        tl.atomic_xchg(to_head, tl.load(sequence_ptr) + 1, sem="release", scope="sys")


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _wait(  # type: ignore[no-untyped-def]
    words_ptr,  # noqa: ANN001
    asked_ptr,  # noqa: ANN001
    sequence_ptr,  # noqa: ANN001
    lost_ptr,  # noqa: ANN001
    patience_ptr,  # noqa: ANN001
    LANES: tl.constexpr,
) -> None:
    WORDS: tl.constexpr = 8
    wanted = tl.load(sequence_ptr) + 1
    deadline = _now() + tl.load(patience_ptr)
    for lane in range(1, LANES):
        lost = tl.load(lost_ptr + lane, volatile=True)
        if (tl.load(asked_ptr + lane * WORDS + 3) != 0) & (lost == 0):
            at = words_ptr + lane * WORDS
            seen = tl.load(at, volatile=True)
            while (seen != wanted) & (lost == 0):
                if _now() > deadline:
                    tl.store(lost_ptr + lane, 1)
                seen = tl.load(at, volatile=True)
                lost = tl.load(lost_ptr + lane, volatile=True)  # the host may know sooner
            # Used, or the compiler drops it, and with it the order of what is read after.
            acquired = tl.atomic_add(at, 0, sem="acquire", scope="sys")
            refused = tl.load(at + 1, volatile=True)
            if (acquired == wanted) & (refused == wanted):
                tl.store(lost_ptr + lane, 3)
    tl.store(sequence_ptr, wanted)


@triton.jit(do_not_specialize=["num_counts"])  # type: ignore[untyped-decorator,unused-ignore]
def _collect(  # type: ignore[no-untyped-def]
    heads_ptr,  # noqa: ANN001
    served_ptr,  # noqa: ANN001
    claimed_ptr,  # noqa: ANN001
    timing_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    num_counts,  # noqa: ANN001
    BOXES: tl.constexpr,
    BLOCK_B: tl.constexpr,
) -> None:
    WORDS: tl.constexpr = 8
    BLOCK: tl.constexpr = 1024
    for start in range(0, num_counts, BLOCK):
        c = start + tl.arange(0, BLOCK)
        tl.store(counts_ptr + c, tl.zeros([BLOCK], tl.int32), mask=c < num_counts)
    b = tl.arange(0, BLOCK_B)
    served = tl.load(served_ptr + b, mask=b < BOXES, other=0)
    deadline = _now() + tl.load(timing_ptr)
    linger = tl.load(timing_ptr + 1)
    all_boxes = tl.load(timing_ptr + 2)
    sequence = tl.load(heads_ptr + b * WORDS, mask=b < BOXES, other=0, volatile=True)
    found = tl.sum((sequence != served).to(tl.int64), axis=0)
    found_before = found * 0
    while (found < all_boxes) & (_now() < deadline):
        if (found > 0) & (found_before == 0):
            deadline = _now() + linger
        found_before = found
        sequence = tl.load(heads_ptr + b * WORDS, mask=b < BOXES, other=0, volatile=True)
        found = tl.sum((sequence != served).to(tl.int64), axis=0)
    is_new = sequence != served
    tl.atomic_add(
        heads_ptr + b * WORDS, tl.zeros([BLOCK_B], tl.int64), mask=is_new, sem="acquire", scope="sys"
    )
    tl.store(claimed_ptr + b, tl.where(is_new, sequence, 0), mask=b < BOXES)


@triton.jit(do_not_specialize=["capacity", "room", "listed_at"])  # type: ignore[untyped-decorator,unused-ignore]
def _route(  # type: ignore[no-untyped-def]
    heads_ptr,  # noqa: ANN001
    claimed_ptr,  # noqa: ANN001
    refused_ptr,  # noqa: ANN001
    experts_ptr,  # noqa: ANN001
    table_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    tiles_ptr,  # noqa: ANN001
    pairs_ptr,  # noqa: ANN001
    capacity,  # noqa: ANN001
    room,  # noqa: ANN001
    listed_at,  # noqa: ANN001
    LAYERS: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    PLACES: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    WORDS: tl.constexpr = 8
    row = tl.program_id(0)
    box = row // capacity
    sequence = tl.load(claimed_ptr + box)
    if sequence == 0:
        return
    if row - box * capacity >= tl.load(heads_ptr + box * WORDS + 2):
        return
    layer = tl.load(heads_ptr + box * WORDS + 1)
    k = tl.arange(0, K)
    expert = tl.load(experts_ptr + row * K + k)
    asked = expert >= 0
    known = asked & (expert < E) & (layer >= 0) & (layer < LAYERS)
    slot = tl.load(table_ptr + layer * E + expert, mask=known, other=-1)
    held = known & (slot >= 0)
    if tl.sum((asked & (slot < 0)).to(tl.int32), axis=0) > 0:
        tl.store(refused_ptr + box, sequence)
    # As in kernels/gate_topk.py.
    rank = tl.atomic_add(counts_ptr + slot, 1, mask=held, sem="relaxed")
    tl.store(pairs_ptr + slot.to(tl.int64) * room + rank, row * PLACES + k, mask=held)
    opens = held & (rank % TILE == 0)
    listed = tl.atomic_add(counts_ptr + listed_at + slot * 0, 1, mask=opens, sem="relaxed")
    tl.store(tiles_ptr + listed, (rank // TILE) << 16 | slot, mask=opens)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _answer(  # type: ignore[no-untyped-def]
    claimed_ptr,  # noqa: ANN001
    refused_ptr,  # noqa: ANN001
    served_ptr,  # noqa: ANN001
    back_ptr,  # noqa: ANN001
    BOXES: tl.constexpr,
    BLOCK_B: tl.constexpr,
) -> None:
    b = tl.arange(0, BLOCK_B)
    sequence = tl.load(claimed_ptr + b, mask=b < BOXES, other=0)
    at = tl.load(back_ptr + b * 2 + 1, mask=b < BOXES, other=0)
    owes = (sequence != 0) & (at != 0)
    words = at.to(tl.pointer_type(tl.int64), bitcast=True)
    refused = tl.load(refused_ptr + b, mask=b < BOXES, other=0) == sequence
    tl.store(words + 1, sequence, mask=owes & refused)
    tl.debug_barrier()
    tl.atomic_xchg(words, sequence, mask=owes, sem="release", scope="sys")
    tl.store(served_ptr + b, sequence, mask=sequence != 0)
