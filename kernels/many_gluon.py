"""Many FP8 rows times block-scaled FP8 weights, by copies beside the products.

What kernels/fp8_gemm_many.py and kernels/expert_gemm_many.py launch on an sm_90 where Triton has Gluon.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from kernels.quantize import inverse_of, scale_bits_of

FIRST = gl.constexpr(0)
SECOND = gl.constexpr(1)


@gluon.jit
def _tile_at(
    index,
    counts_ptr,
    tiles_ptr,
    rows,
    N: gl.constexpr,
    HALVES: gl.constexpr,
    LISTED: gl.constexpr,
    BAND: gl.constexpr,
):
    """(expert, first row, rows of the expert, tile of outputs)"""
    ACROSS: gl.constexpr = N // (128 * HALVES)
    if LISTED:
        entry = gl.load(tiles_ptr + index // ACROSS)
        expert = entry & 0xFFFF
        return expert, (entry >> 16) * 128, gl.load(counts_ptr + expert), index % ACROSS
    else:
        row_tiles = (rows + 127) // 128
        band = index // (BAND * ACROSS)
        within = index - band * (BAND * ACROSS)
        high = gl.minimum(row_tiles - band * BAND, BAND)
        return index * 0, (band * BAND + within % high) * 128, rows, within // high


@gluon.jit
def _rows_of(
    r, expert, count, pairs_ptr, capacity, LISTED: gl.constexpr, PAIRS: gl.constexpr
):
    inside = r < count
    if LISTED:
        pair = gl.load(pairs_ptr + expert * capacity + r, mask=inside, other=0)
        return pair // PAIRS
    else:
        return gl.where(inside, r, 0)


@gluon.jit
def _produce(
    x_ptr,
    x_desc,
    x_scale_ptr,
    w_desc,
    counts_ptr,
    tiles_ptr,
    pairs_ptr,
    rows,
    x_scale_stride,
    capacity,
    num_tiles,
    a_buffers,
    b_buffers,
    scale_buffers,
    ready,
    free,
    N: gl.constexpr,
    K: gl.constexpr,
    HALVES: gl.constexpr,
    LISTED: gl.constexpr,
    BAND: gl.constexpr,
    PAIRS: gl.constexpr,
    STAGES: gl.constexpr,
    PROXY: gl.constexpr,
    FUSED: gl.constexpr,
):
    COPY: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    k = gl.arange(0, 128, layout=gl.SliceLayout(0, COPY))
    APART: gl.constexpr = N // 2 if FUSED else 128  # between the two blocks of outputs
    BYTES: gl.constexpr = 16384 * (HALVES + (PROXY == 0))
    stage = 0
    phase = 1
    last = 0
    begun = gl.to_tensor(False)
    for index in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        expert, first, count, n_tile = _tile_at(index, counts_ptr, tiles_ptr, rows, N, HALVES, LISTED, BAND)
        w_row = expert * N + n_tile * (128 if FUSED else 128 * HALVES)
        row = first + gl.arange(0, 128, layout=LINE)
        scale_row = _rows_of(row, expert, count, pairs_ptr, capacity, LISTED, PAIRS)
        row = first + gl.arange(0, 128, layout=gl.SliceLayout(1, COPY))
        row = _rows_of(row, expert, count, pairs_ptr, capacity, LISTED, PAIRS)
        x_offset = row.to(gl.int64)[:, None] * K + k[None, :]
        x_base = x_ptr
        scale_base = x_scale_ptr
        for group in range(K // 128):
            mbarrier.wait(free.index(stage), phase)
            bar = ready.index(stage)
            if PROXY == 0:
                mbarrier.expect(bar, BYTES)
                tma.async_copy_global_to_shared(x_desc, [first, group * 128], bar, a_buffers.index(stage))
            else:
                mbarrier.expect(bar, BYTES)
                async_copy.async_copy_global_to_shared(a_buffers.index(stage), x_base + x_offset)
            for half in gl.static_range(HALVES):
                tma.async_copy_global_to_shared(
                    w_desc, [w_row + half * APART, group * 128], bar, b_buffers.index(stage * HALVES + half)
                )
            async_copy.async_copy_global_to_shared(scale_buffers.index(stage), scale_base + scale_row)
            if PROXY == 2:
                async_copy.commit_group()
                async_copy.wait_group(1)
                fence_async_shared()
                gl.thread_barrier()
                mbarrier.arrive(ready.index(last), count=1, pred=begun)
                begun = gl.to_tensor(True)
                last = stage
            else:
                async_copy.mbarrier_arrive(bar, increment_count=False)
            x_base += 128
            scale_base += x_scale_stride
            stage += 1
            phase = gl.where(stage == STAGES, phase ^ 1, phase)
            stage = gl.where(stage == STAGES, 0, stage)
    if PROXY == 2:
        async_copy.wait_group(0)
        fence_async_shared()
        gl.thread_barrier()
        mbarrier.arrive(ready.index(last), count=1, pred=begun)


@gluon.jit
def _store(out_ptr, values, staged, first, expert, count, pairs_ptr, capacity, N: gl.constexpr,
           LISTED: gl.constexpr, WG: gl.constexpr, FP32: gl.constexpr):
    OUT: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    r = first + WG * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, OUT))
    inside = r < count
    at = r
    if LISTED:
        at = gl.load(pairs_ptr + expert * capacity + r, mask=inside, other=0)
    n = gl.arange(0, 128, layout=gl.SliceLayout(0, OUT))
    at = out_ptr + at.to(gl.int64)[:, None] * N + n[None, :]
    if FP32:
        gl.store(at, gl.convert_layout(values, OUT), mask=inside[:, None])
    else:
        gl.thread_barrier()
        staged.store(values.to(out_ptr.dtype.element_ty))
        gl.thread_barrier()
        gl.store(at, staged.load(OUT), mask=inside[:, None])


@gluon.jit
def _store_activated(out_ptr, out_scale_ptr, out_scale_stride, gate, up, staged, first, expert, count, pairs_ptr, capacity,
                     n_tile, WIDTH: gl.constexpr, WG: gl.constexpr):
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    OUT: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    hidden = gate / (1.0 + gl.exp(-gate)) * up
    bits = scale_bits_of(gl.max(gl.abs(hidden), axis=1))
    values = (hidden * inverse_of(bits)[:, None]).to(gl.float8e4nv)
    r = first + WG * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, ACC))
    inside = r < count
    pair = gl.load(pairs_ptr + expert * capacity + r, mask=inside, other=0)
    gl.store(out_scale_ptr + n_tile * out_scale_stride + pair, bits.to(gl.float32, bitcast=True), mask=inside)
    small = staged._reinterpret(gl.float8e4nv, [64, 128], gl.NVMMASharedLayout(128, 8, 2))
    gl.thread_barrier()
    small.store(values)
    gl.thread_barrier()
    r = first + WG * 64 + gl.arange(0, 64, layout=gl.SliceLayout(1, OUT))
    inside = r < count
    pair = gl.load(pairs_ptr + expert * capacity + r, mask=inside, other=0)
    n = gl.arange(0, 128, layout=gl.SliceLayout(0, OUT))
    at = out_ptr + pair.to(gl.int64)[:, None] * WIDTH + n_tile * 128 + n[None, :]
    gl.store(at, small.load(OUT), mask=inside[:, None])


@gluon.jit
def _multiply(
    w_scale_ptr,
    out_ptr,
    out_scale_ptr,
    out_scale_stride,
    counts_ptr,
    tiles_ptr,
    pairs_ptr,
    rows,
    capacity,
    num_tiles,
    a_buffers,
    b_buffers,
    scale_buffers,
    staged,
    ready,
    free,
    turns,
    N: gl.constexpr,
    K: gl.constexpr,
    SPLITS: gl.constexpr,
    HALVES: gl.constexpr,
    LISTED: gl.constexpr,
    BAND: gl.constexpr,
    STAGES: gl.constexpr,
    PROXY: gl.constexpr,
    FUSED: gl.constexpr,
    TURNS: gl.constexpr,
    WG: gl.constexpr,
):
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    APART: gl.constexpr = N // 2 // 128 if FUSED else HALVES - 1
    GROUPS: gl.constexpr = K // 128 // SPLITS
    stage = 0
    phase = 0
    turn = 1 - WG
    for index in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        expert, first, count, n_tile = _tile_at(index, counts_ptr, tiles_ptr, rows, N, HALVES, LISTED, BAND)
        w_scale_at = w_scale_ptr + (expert * (N // 128) + n_tile * (1 if FUSED else HALVES)) * (K // 128)
        part = gl.full([64, 128], 0.0, gl.float32, ACC)  # anew: else it lives while results are stored
        total = gl.full([64, 128], 0.0, gl.float32, ACC)
        left = gl.full([64, 128], 0.0, gl.float32, ACC)
        right = gl.full([64, 128], 0.0, gl.float32, ACC)
        w_left = gl.load(w_scale_at)
        w_right = gl.load(w_scale_at + APART * (K // 128))
        for split in range(SPLITS):
            left = gl.full([64, 128], 0.0, gl.float32, ACC)
            for group in range(GROUPS):
                mbarrier.wait(ready.index(stage), phase)
                if PROXY == 1:
                    fence_async_shared()
                a = a_buffers.index(stage).slice(WG * 64, 64, dim=0)
                b = b_buffers.index(stage * HALVES).permute((1, 0))
                if TURNS:
                    mbarrier.wait(turns.index(WG), turn)
                part = warpgroup_mma(a, b, part, use_acc=False, is_async=True)
                if TURNS:
                    mbarrier.arrive(turns.index(1 - WG), count=1)
                    turn ^= 1
                x_scale = scale_buffers.index(stage).slice(WG * 64, 64, dim=0).load(gl.SliceLayout(1, ACC))
                by_left = x_scale * w_left
                by_right = x_scale * w_right
                ahead = gl.minimum(split * GROUPS + group + 1, K // 128 - 1)
                w_left = gl.load(w_scale_at + ahead)
                w_right = gl.load(w_scale_at + APART * (K // 128) + ahead)
                part = warpgroup_mma_wait(0, deps=[part])
                if HALVES == 1:
                    gl.thread_barrier()
                    mbarrier.arrive(free.index(stage), count=1)
                left += part * by_left[:, None]
                if HALVES == 2:
                    b = b_buffers.index(stage * HALVES + 1).permute((1, 0))
                    if TURNS:
                        mbarrier.wait(turns.index(WG), turn)
                    part = warpgroup_mma(a, b, part, use_acc=False, is_async=True)
                    if TURNS:
                        mbarrier.arrive(turns.index(1 - WG), count=1)
                        turn ^= 1
                    part = warpgroup_mma_wait(0, deps=[part])
                    gl.thread_barrier()
                    mbarrier.arrive(free.index(stage), count=1)
                    right += part * by_right[:, None]
                stage += 1
                phase = gl.where(stage == STAGES, phase ^ 1, phase)
                stage = gl.where(stage == STAGES, 0, stage)
            if SPLITS > 1:
                total += left
        if SPLITS > 1:
            left = total
        FP32: gl.constexpr = out_ptr.dtype.element_ty == gl.float32
        if FUSED:
            _store_activated(out_ptr, out_scale_ptr, out_scale_stride, left, right, staged, first, expert, count,
                             pairs_ptr, capacity, n_tile, N // 2, WG)
        else:
            out_at = out_ptr + n_tile * (128 * HALVES)
            _store(out_at, left, staged, first, expert, count, pairs_ptr, capacity, N, LISTED, WG, FP32)
            if HALVES == 2:
                _store(out_at + 128, right, staged, first, expert, count, pairs_ptr, capacity, N, LISTED, WG, FP32)


@gluon.jit
def _multiply_pairs(
    w_scale_ptr,
    out_ptr,
    out_scale_ptr,
    out_scale_stride,
    counts_ptr,
    tiles_ptr,
    pairs_ptr,
    rows,
    capacity,
    num_tiles,
    a_buffers,
    b_buffers,
    scale_buffers,
    staged,
    ready,
    free,
    N: gl.constexpr,
    K: gl.constexpr,
    SPLITS: gl.constexpr,
    HALVES: gl.constexpr,
    LISTED: gl.constexpr,
    BAND: gl.constexpr,
    STAGES: gl.constexpr,
    PROXY: gl.constexpr,
    FUSED: gl.constexpr,
    WG: gl.constexpr,
):
    """Two sums in flight: one is promoted while the next is made. K of a split is an even number of groups."""
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    PER_ROW: gl.constexpr = gl.SliceLayout(1, ACC)
    GROUPS: gl.constexpr = K // 128 // SPLITS
    even = gl.full([64, 128], 0.0, gl.float32, ACC)
    odd = gl.full([64, 128], 0.0, gl.float32, ACC)
    stage = 0
    phase = 0
    for index in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        expert, first, count, n_tile = _tile_at(index, counts_ptr, tiles_ptr, rows, N, HALVES, LISTED, BAND)
        w_scale_at = w_scale_ptr + (expert * (N // 128) + n_tile) * (K // 128)
        total = gl.full([64, 128], 0.0, gl.float32, ACC)
        left = gl.full([64, 128], 0.0, gl.float32, ACC)
        w_even = gl.load(w_scale_at)
        w_odd = gl.load(w_scale_at + 1)
        for split in range(SPLITS):
            left = gl.full([64, 128], 0.0, gl.float32, ACC)
            for two in range(GROUPS // 2):
                mbarrier.wait(ready.index(stage), phase)
                if PROXY == 1:
                    fence_async_shared()
                a = a_buffers.index(stage).slice(WG * 64, 64, dim=0)
                b = b_buffers.index(stage).permute((1, 0))
                even = warpgroup_mma(a, b, even, use_acc=False, is_async=True)
                by_even = scale_buffers.index(stage).slice(WG * 64, 64, dim=0).load(PER_ROW) * w_even
                following = stage + 1
                phase = gl.where(following == STAGES, phase ^ 1, phase)
                following = gl.where(following == STAGES, 0, following)
                mbarrier.wait(ready.index(following), phase)
                if PROXY == 1:
                    fence_async_shared()
                a = a_buffers.index(following).slice(WG * 64, 64, dim=0)
                b = b_buffers.index(following).permute((1, 0))
                odd = warpgroup_mma(a, b, odd, use_acc=False, is_async=True)
                by_odd = scale_buffers.index(following).slice(WG * 64, 64, dim=0).load(PER_ROW) * w_odd
                ahead = gl.minimum(split * GROUPS + 2 * two + 2, K // 128 - 2)
                w_even = gl.load(w_scale_at + ahead)
                w_odd = gl.load(w_scale_at + ahead + 1)
                even = warpgroup_mma_wait(1, deps=[even])
                gl.thread_barrier()
                mbarrier.arrive(free.index(stage), count=1)
                left += even * by_even[:, None]
                odd = warpgroup_mma_wait(0, deps=[odd])
                gl.thread_barrier()
                mbarrier.arrive(free.index(following), count=1)
                left += odd * by_odd[:, None]
                stage = following + 1
                phase = gl.where(stage == STAGES, phase ^ 1, phase)
                stage = gl.where(stage == STAGES, 0, stage)
            if SPLITS > 1:
                total += left
        if SPLITS > 1:
            left = total
        FP32: gl.constexpr = out_ptr.dtype.element_ty == gl.float32
        out_at = out_ptr + n_tile * 128
        _store(out_at, left, staged, first, expert, count, pairs_ptr, capacity, N, LISTED, WG, FP32)


@gluon.jit(do_not_specialize=["rows", "capacity", "shared_tiles"])
def many_kernel(
    x_ptr,
    x_desc,
    x_scale_ptr,
    w_desc,
    w_scale_ptr,
    out_ptr,
    out_scale_ptr,
    out_scale_stride,
    counts_ptr,
    tiles_ptr,
    pairs_ptr,
    rows,
    x_scale_stride,
    capacity,
    shared_tiles,
    E: gl.constexpr,
    N: gl.constexpr,
    K: gl.constexpr,
    SPLITS: gl.constexpr,
    HALVES: gl.constexpr,
    LISTED: gl.constexpr,
    BAND: gl.constexpr,
    PAIRS: gl.constexpr,
    STAGES: gl.constexpr,
    PROXY: gl.constexpr,
    FUSED: gl.constexpr,
    PAIRED: gl.constexpr,
    TURNS: gl.constexpr,
    MULTIPLIER_REGISTERS: gl.constexpr,
):
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 8, 2)
    a_buffers = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, 128, 128], OPERAND)
    b_buffers = gl.allocate_shared_memory(gl.float8e4nv, [STAGES * HALVES, 128, 128], OPERAND)
    scale_buffers = gl.allocate_shared_memory(gl.float32, [STAGES, 128], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=2 if PROXY == 2 else 129)
        mbarrier.init(free.index(stage), count=2)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(turns.index(0), count=1)
    mbarrier.init(turns.index(1), count=1)
    ACROSS: gl.constexpr = N // (128 * HALVES)
    if LISTED:
        num_tiles = (shared_tiles + gl.load(counts_ptr + E)) * ACROSS
    else:
        num_tiles = (rows + 127) // 128 * ACROSS
    STAGED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    staged0 = gl.allocate_shared_memory(gl.bfloat16, [64, 128], STAGED)
    staged1 = gl.allocate_shared_memory(gl.bfloat16, [64, 128], STAGED)
    if PAIRED:
        gl.warp_specialize(
            [
                (_produce, (
        x_ptr, x_desc, x_scale_ptr, w_desc, counts_ptr, tiles_ptr, pairs_ptr, rows, x_scale_stride, capacity, num_tiles,
        a_buffers, b_buffers, scale_buffers, ready, free, N, K, HALVES, LISTED, BAND, PAIRS, STAGES, PROXY, FUSED,
    )),
                (_multiply_pairs, (w_scale_ptr, out_ptr, out_scale_ptr, out_scale_stride, counts_ptr, tiles_ptr, pairs_ptr, rows, capacity, num_tiles, a_buffers, b_buffers, scale_buffers, staged0, ready, free, N, K, SPLITS, HALVES, LISTED, BAND, STAGES, PROXY, FUSED, FIRST)),
                (_multiply_pairs, (w_scale_ptr, out_ptr, out_scale_ptr, out_scale_stride, counts_ptr, tiles_ptr, pairs_ptr, rows, capacity, num_tiles, a_buffers, b_buffers, scale_buffers, staged1, ready, free, N, K, SPLITS, HALVES, LISTED, BAND, STAGES, PROXY, FUSED, SECOND)),
            ],
            [4, 4],
            [MULTIPLIER_REGISTERS, MULTIPLIER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (_produce, (
        x_ptr, x_desc, x_scale_ptr, w_desc, counts_ptr, tiles_ptr, pairs_ptr, rows, x_scale_stride, capacity, num_tiles,
        a_buffers, b_buffers, scale_buffers, ready, free, N, K, HALVES, LISTED, BAND, PAIRS, STAGES, PROXY, FUSED,
    )),
                (_multiply, (w_scale_ptr, out_ptr, out_scale_ptr, out_scale_stride, counts_ptr, tiles_ptr, pairs_ptr, rows, capacity, num_tiles, a_buffers, b_buffers, scale_buffers, staged0, ready, free, turns, N, K, SPLITS, HALVES, LISTED, BAND, STAGES, PROXY, FUSED, TURNS, FIRST)),
                (_multiply, (w_scale_ptr, out_ptr, out_scale_ptr, out_scale_stride, counts_ptr, tiles_ptr, pairs_ptr, rows, capacity, num_tiles, a_buffers, b_buffers, scale_buffers, staged1, ready, free, turns, N, K, SPLITS, HALVES, LISTED, BAND, STAGES, PROXY, FUSED, TURNS, SECOND)),
            ],
            [4, 4],
            [MULTIPLIER_REGISTERS, MULTIPLIER_REGISTERS],
        )
