"""The two parts of a sparse MLA program that multiply, on an sm_90.

The scorer keeps the running softmax and sums values 0 to 255; the weigher, handed the weights in shared
memory, sums the others. Keys come as tiles of 64 in two shared buffers, by whoever fills them: `ready` says
that one is full, `free` that it is read. A program goes through one share of a query's keys or through
several, one after the other. Knows nothing of where keys come from.

Letters: as in kernels/sparse_mla.py
"""

from __future__ import annotations

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import (
    async_copy,
)
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _load_queries(
    query_ptr: gl.tensor, queries: gl.shared_memory_descriptor, turned: gl.shared_memory_descriptor
) -> None:
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    head = gl.arange(0, 64, layout=gl.SliceLayout(1, WIDE))
    dims = gl.arange(0, 128, layout=gl.SliceLayout(0, WIDE))
    at = query_ptr + head[:, None] * 576 + dims[None, :]
    for group in gl.static_range(4):
        async_copy.async_copy_global_to_shared(queries.index(group), at + group * 128)
    NARROW: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    head = gl.arange(0, 64, layout=gl.SliceLayout(1, NARROW))
    dims = gl.arange(0, 64, layout=gl.SliceLayout(0, NARROW))
    async_copy.async_copy_global_to_shared(turned, query_ptr + 512 + head[:, None] * 576 + dims[None, :])
    async_copy.commit_group()
    async_copy.wait_group(0)
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _store_values(out_ptr: gl.tensor, values: gl.tensor, buffer: gl.shared_memory_descriptor) -> None:
    """By way of a buffer that no one reads any more, so that stores are of whole lines."""
    OUT: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    staged = buffer._reinterpret(out_ptr.dtype.element_ty, [64, 128], buffer.type.layout)
    staged.store(values.to(out_ptr.dtype.element_ty))
    gl.thread_barrier()
    head = gl.arange(0, 64, layout=gl.SliceLayout(1, OUT))
    dims = gl.arange(0, 128, layout=gl.SliceLayout(0, OUT))
    gl.store(out_ptr + head[:, None] * 512 + dims[None, :], staged.load(OUT))


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def score(
    query_ptr: gl.tensor,
    slots_ptr: gl.tensor,
    out_ptr: gl.tensor,
    lse_ptr: gl.tensor,
    rooms: gl.tuple,
    bars: gl.tuple,
    num_tiles: gl.tensor,
    scale_log2: gl.tensor,
    first_row: gl.tensor,
    HEADS: gl.constexpr,
    SHARES: gl.constexpr,
    TILES: gl.constexpr,
) -> None:
    """The shares of a program one after the other, each as if it were alone."""
    _load_queries(query_ptr, rooms[0], rooms[1])
    if SHARES == 1:
        _score_share(
            slots_ptr, out_ptr, lse_ptr, rooms, bars, 0, num_tiles, 0, scale_log2, first_row, HEADS, SHARES
        )
    else:
        used = (num_tiles + TILES - 1) // TILES
        for share in range(used):
            end = gl.minimum((share + 1) * TILES, num_tiles)
            _score_share(
                slots_ptr, out_ptr, lse_ptr, rooms, bars, share * TILES, end, share, scale_log2, first_row,
                HEADS, SHARES,
            )  # fmt: skip
        EACH: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
        nothing = gl.full([64], float("-inf"), gl.float32, EACH)
        for share in range(used, SHARES):
            gl.store(lse_ptr + first_row + share * HEADS + gl.arange(0, 64, layout=EACH), nothing)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _score_share(
    slots_ptr: gl.tensor,
    out_ptr: gl.tensor,
    lse_ptr: gl.tensor,
    rooms: gl.tuple,
    bars: gl.tuple,
    first_tile: gl.tensor,
    end_tile: gl.tensor,
    share: gl.tensor,
    scale_log2: gl.tensor,
    first_row: gl.tensor,
    HEADS: gl.constexpr,
    SHARES: gl.constexpr,
) -> None:
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    PER_HEAD: gl.constexpr = gl.SliceLayout(1, SCORES)
    PER_ROW: gl.constexpr = gl.SliceLayout(1, VALUES)
    queries, turned, keys, rotaries, weights, shrinks = rooms
    ready, free, weighed, taken = bars
    top_H = gl.full([64], float("-inf"), gl.float32, PER_HEAD)
    sum_H = gl.full([64], 0.0, gl.float32, PER_HEAD)
    left = gl.full([64, 128], 0.0, gl.float32, VALUES)
    right = gl.full([64, 128], 0.0, gl.float32, VALUES)
    score = gl.full([64, 64], 0.0, gl.float32, SCORES)
    key = gl.arange(0, 64, layout=gl.SliceLayout(0, SCORES))
    for tile in range(first_tile, end_tile):
        buffer = tile % 2
        chosen = gl.load(slots_ptr + tile * 64 + key)
        mbarrier.wait(ready.index(buffer), (tile // 2) & 1)
        rotary = rotaries.index(buffer).permute((1, 0))
        score = warpgroup_mma(turned, rotary, score, use_acc=False, is_async=True)
        for group in gl.static_range(4):
            latent = keys[group].index(buffer).permute((1, 0))
            score = warpgroup_mma(queries.index(group), latent, score, is_async=True)
        score = warpgroup_mma_wait(0, deps=[score])
        score = gl.where(chosen[None, :] >= 0, score * scale_log2, float("-inf"))
        grown_H = gl.maximum(top_H, gl.max(score, 1))
        base_H = gl.where(grown_H == float("-inf"), 0.0, grown_H)  # a tile may be padding alone
        shrink_H = gl.exp2(top_H - base_H)
        score = gl.exp2(score - base_H[:, None])
        weight = score.to(gl.float16)
        top_H = grown_H
        mbarrier.wait(taken, ((tile + share) & 1) ^ 1)
        weights.store(weight)
        shrinks.store(shrink_H)
        fence_async_shared()
        gl.thread_barrier()  # arrive speaks for one thread: all must have written
        mbarrier.arrive(weighed, count=1)
        sum_H = sum_H * shrink_H + gl.sum(score, 1)
        shrink = gl.convert_layout(shrink_H, PER_ROW)[:, None]
        weight = gl.convert_layout(weight, gl.DotOperandLayout(0, VALUES, 2))
        left = warpgroup_mma(weight, keys[0].index(buffer), left * shrink, is_async=True)
        right = warpgroup_mma(weight, keys[1].index(buffer), right * shrink, is_async=True)
        left, right = warpgroup_mma_wait(0, deps=[left, right])
        gl.thread_barrier()
        mbarrier.arrive(free.index(buffer), count=1, pred=tile + 1 < end_tile)
    over_H = 1.0 / gl.where(sum_H > 0, sum_H, 1.0)  # a convex sum of fp16 values is within fp16
    mbarrier.wait(taken, ((end_tile + share) & 1) ^ 1)
    shrinks.store(over_H)
    gl.thread_barrier()
    mbarrier.arrive(weighed, count=1)
    head = gl.arange(0, 64, layout=PER_HEAD)
    row = first_row + share * HEADS
    gl.store(lse_ptr + row + head, top_H + gl.log2(sum_H))  # -inf where there was no key
    over = gl.convert_layout(over_H, PER_ROW)[:, None]
    out_ptr += gl.to_tensor(row).to(gl.int64) * 512
    buffer = gl.maximum(end_tile - 1, 0) % 2  # of the last tile, not yet free
    _store_values(out_ptr, left * over, keys[0].index(buffer))
    _store_values(out_ptr + 128, right * over, keys[1].index(buffer))
    if SHARES > 1:
        gl.thread_barrier()  # all must have read
        mbarrier.arrive(free.index(buffer), count=1)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def weigh(
    out_ptr: gl.tensor,
    rooms: gl.tuple,
    bars: gl.tuple,
    num_tiles: gl.tensor,
    first_row: gl.tensor,
    HEADS: gl.constexpr,
    SHARES: gl.constexpr,
    TILES: gl.constexpr,
) -> None:
    if SHARES == 1:
        _weigh_share(out_ptr, rooms, bars, 0, num_tiles, 0, first_row, SHARES)
    else:
        for share in range((num_tiles + TILES - 1) // TILES):
            end = gl.minimum((share + 1) * TILES, num_tiles)
            row = first_row + share * HEADS
            _weigh_share(out_ptr, rooms, bars, share * TILES, end, share, row, SHARES)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _weigh_share(
    out_ptr: gl.tensor,
    rooms: gl.tuple,
    bars: gl.tuple,
    first_tile: gl.tensor,
    end_tile: gl.tensor,
    share: gl.tensor,
    row: gl.tensor,
    SHARES: gl.constexpr,
) -> None:
    VALUES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    PER_ROW: gl.constexpr = gl.SliceLayout(1, VALUES)
    _, _, keys, _, weights, shrinks = rooms
    _, free, weighed, taken = bars
    left = gl.full([64, 128], 0.0, gl.float32, VALUES)
    right = gl.full([64, 128], 0.0, gl.float32, VALUES)
    for tile in range(first_tile, end_tile):
        buffer = tile % 2
        mbarrier.wait(weighed, (tile + share) & 1)
        shrink = shrinks.load(PER_ROW)[:, None]
        left = warpgroup_mma(weights, keys[2].index(buffer), left * shrink, is_async=True)
        right = warpgroup_mma(weights, keys[3].index(buffer), right * shrink, is_async=True)
        left, right = warpgroup_mma_wait(0, deps=[left, right])
        gl.thread_barrier()  # arrive speaks for one thread: all must have read
        mbarrier.arrive(taken, count=1)
        mbarrier.arrive(free.index(buffer), count=1, pred=tile + 1 < end_tile)
    mbarrier.wait(weighed, (end_tile + share) & 1)
    over = shrinks.load(PER_ROW)[:, None]
    if SHARES > 1:
        gl.thread_barrier()
        mbarrier.arrive(taken, count=1)
    out_ptr += row.to(gl.int64) * 512 + 256
    buffer = gl.maximum(end_tile - 1, 0) % 2
    _store_values(out_ptr, left * over, keys[2].index(buffer))
    _store_values(out_ptr + 128, right * over, keys[3].index(buffer))
    if SHARES > 1:
        gl.thread_barrier()
        mbarrier.arrive(free.index(buffer), count=1)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def rooms_of_a_program() -> tuple[gl.tuple, gl.tuple]:
    """Shared memory and barriers, initialised: (queries, turned, keys, rotaries, weights, shrinks), (...)."""
    WIDE: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    queries = gl.allocate_shared_memory(gl.float16, [4, 64, 128], WIDE)
    turned = gl.allocate_shared_memory(gl.float16, [64, 64], WIDE)
    # Buffers of 128 dims each: stores to one allocation wait for each other.
    keys0 = gl.allocate_shared_memory(gl.float16, [2, 64, 128], WIDE)
    keys1 = gl.allocate_shared_memory(gl.float16, [2, 64, 128], WIDE)
    keys2 = gl.allocate_shared_memory(gl.float16, [2, 64, 128], WIDE)
    keys3 = gl.allocate_shared_memory(gl.float16, [2, 64, 128], WIDE)
    rotaries = gl.allocate_shared_memory(gl.float16, [2, 64, 64], WIDE)
    weights = gl.allocate_shared_memory(gl.float16, [64, 64], WIDE)
    shrinks = gl.allocate_shared_memory(gl.float32, [64], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    weighed = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    taken = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for buffer in gl.static_range(2):
        mbarrier.init(ready.index(buffer), count=1)
        mbarrier.init(free.index(buffer), count=2)  # scorer and weigher
    mbarrier.init(weighed, count=1)
    mbarrier.init(taken, count=1)
    rooms = (queries, turned, (keys0, keys1, keys2, keys3), rotaries, weights, shrinks)
    return rooms, (ready, free, weighed, taken)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def used_tiles(slots_ptr: gl.tensor, SLOTS: gl.constexpr) -> gl.tensor:
    """Of 64 slots, up to the last that is one."""
    num_tiles = gl.to_tensor(1)
    if SLOTS > 64:
        at = gl.arange(0, triton.next_power_of_2(SLOTS), layout=gl.BlockedLayout([1], [32], [4], [0]))
        slots = gl.load(slots_ptr + at, mask=at < SLOTS, other=-1)
        num_tiles = (gl.max(gl.where(slots >= 0, at + 1, 0), 0) + 63) // 64  # what follows is padding
    return num_tiles
