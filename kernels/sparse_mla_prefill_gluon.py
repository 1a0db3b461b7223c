"""Sparse MLA prefill: the decode's products, fed by copies.

Keys are 16-bit and were de-quantised once for all queries, so the producer of kernels/sparse_mla_gluon.py
becomes nothing but copies from memory to shared memory. Scorer and weigher are decode's own, so that a query
has the same bits in both; a program goes through its shares in order. Knows nothing of how slots were chosen.

Letters: as in kernels/sparse_mla.py
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from kernels.sparse_mla_warps import rooms_of_a_program, score, used_tiles, weigh


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _copy(
    slots_ptr: gl.tensor, keys_ptr: gl.tensor, rooms: gl.tuple, bars: gl.tuple, num_tiles: gl.tensor
) -> None:
    """Tiles of 64 keys; eight threads copy 128 bytes of a key at a time."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    _, _, keys, rotaries, _, _ = rooms
    ready, free, _, _ = bars
    key = gl.arange(0, 64, layout=gl.SliceLayout(1, LAYOUT))
    dims = gl.arange(0, 128, layout=gl.SliceLayout(0, LAYOUT))
    rotary = 512 + gl.arange(0, 64, layout=gl.SliceLayout(0, LAYOUT))
    chosen = gl.load(slots_ptr + key)
    for tile in range(num_tiles):
        buffer = tile % 2
        row = keys_ptr + gl.maximum(chosen, 0).to(gl.int64)[:, None] * 576
        chosen = gl.load(slots_ptr + gl.minimum(tile + 1, num_tiles - 1) * 64 + key)
        mbarrier.wait(free.index(buffer), ((tile // 2) & 1) ^ 1)
        async_copy.async_copy_global_to_shared(rotaries.index(buffer), row + rotary[None, :])
        for group in gl.static_range(4):
            async_copy.async_copy_global_to_shared(
                keys[group].index(buffer), row + group * 128 + dims[None, :]
            )
        async_copy.commit_group()
        async_copy.wait_group(0)
        fence_async_shared()
        gl.thread_barrier()  # arrive speaks for one thread: all must have written
        mbarrier.arrive(ready.index(buffer), count=1)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def sparse_mla_prefill_gluon_kernel(
    query_ptr: gl.tensor,
    slots_ptr: gl.tensor,
    keys_ptr: gl.tensor,
    out_ptr: gl.tensor,
    lse_ptr: gl.tensor,
    scale_log2: gl.float32,
    HEADS: gl.constexpr,
    SLOTS: gl.constexpr,
    SHARES: gl.constexpr,
    WEIGHER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
) -> None:
    """out_ptr, lse_ptr: [T, SHARES, HEADS, ...]; what a query's keys do not reach has lse -inf alone."""
    first_head, row = gl.program_id(0) * 64, gl.program_id(1).to(gl.int64)
    TILES: gl.constexpr = SLOTS // SHARES // 64
    slots_ptr += row * SLOTS
    query_ptr += (row * HEADS + first_head) * 576
    first_row = (row * SHARES * HEADS + first_head).to(gl.int32)
    rooms, bars = rooms_of_a_program()
    num_tiles = used_tiles(slots_ptr, SLOTS)
    scored = (query_ptr, slots_ptr, out_ptr, lse_ptr, rooms, bars, num_tiles, scale_log2, first_row)
    gl.warp_specialize(
        [
            (score, scored + (HEADS, SHARES, TILES)),  # noqa: RUF005
            (weigh, (out_ptr, rooms, bars, num_tiles, first_row, HEADS, SHARES, TILES)),
            (_copy, (slots_ptr, keys_ptr, rooms, bars, num_tiles)),
        ],
        [4, 4],
        [WEIGHER_REGISTERS, PRODUCER_REGISTERS],
    )
