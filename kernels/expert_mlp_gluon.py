"""Both products of the experts over few rows, in one launch.

What kernels/expert_mlp.py launches on an sm_90 where Triton has Gluon. Three parts of a program run side by
side: one copies weights and never waits for a result, one gathers rows, one multiplies. A program takes every
tile of its share of the up projection and then of the down projection, whose weights are on their way while
the last rows of the up projection are still made. Knows nothing of how rows were routed.

Letters: R rows  D hidden  F expert width  E experts  P pairs
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
from kernels.ring import following, release

MULTIPLIER_WARPS = gl.constexpr(8)
# Of a thread. What weights are brought by needs hardly any.
MULTIPLIER_REGISTERS, WEIGHTS_REGISTERS = gl.constexpr(200), gl.constexpr(24)
VARYING = ["x_scale_stride", "between_scale_stride", "capacity", "shared_tiles"]


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _first_down(up_tiles: gl.tensor) -> gl.tensor:
    """Of this program: tiles go round, those of the down projection after those of the up projection."""
    mine = gl.maximum(up_tiles - gl.program_id(0) + gl.num_programs(0) - 1, 0) // gl.num_programs(0)
    return gl.program_id(0) + mine * gl.num_programs(0) - up_tiles


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _bring_weights(
    gate_up_desc: gl.tensor,
    down_desc: gl.tensor,
    tiles_ptr: gl.tensor,
    places: gl.tensor,
    weights: gl.shared_memory_descriptor,
    ready: gl.shared_memory_descriptor,
    free: gl.shared_memory_descriptor,
    D: gl.constexpr,
    F: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    UP_TILES: gl.constexpr = F // 128
    DOWN_TILES: gl.constexpr = D // 128
    stage, phase = 0, 1
    for index in range(gl.program_id(0), places * UP_TILES, gl.num_programs(0)):
        expert = gl.load(tiles_ptr + index // UP_TILES) & 0xFFFF
        first = expert * (2 * F) + index % UP_TILES * 128
        for group in range(D // 128):
            mbarrier.wait(free.index(stage), phase)
            bar = ready.index(stage)
            mbarrier.expect(bar, 32768)
            tma.async_copy_global_to_shared(gate_up_desc, [first, group * 128], bar, weights.index(2 * stage))
            tma.async_copy_global_to_shared(
                gate_up_desc, [first + F, group * 128], bar, weights.index(2 * stage + 1)
            )
            stage, phase = following(stage, phase, STAGES)
    for index in range(_first_down(places * UP_TILES), places * DOWN_TILES, gl.num_programs(0)):
        expert = gl.load(tiles_ptr + index // DOWN_TILES) & 0xFFFF
        first = expert * D + index % DOWN_TILES * 128
        for group in range(F // 256):
            mbarrier.wait(free.index(stage), phase)
            bar = ready.index(stage)
            mbarrier.expect(bar, 32768)
            tma.async_copy_global_to_shared(down_desc, [first, group * 256], bar, weights.index(2 * stage))
            tma.async_copy_global_to_shared(
                down_desc, [first, group * 256 + 128], bar, weights.index(2 * stage + 1)
            )
            stage, phase = following(stage, phase, STAGES)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _pairs_of(
    entry: gl.tensor, r: gl.tensor, counts_ptr: gl.tensor, pairs_ptr: gl.tensor, capacity: gl.tensor
) -> gl.tuple:
    """(pairs of these places of a tile's expert, which are there); 0 where there is none."""
    expert = entry & 0xFFFF
    inside = r < gl.load(counts_ptr + expert)
    return gl.load(pairs_ptr + expert * capacity + r, mask=inside, other=0), inside


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _bring_rows(
    x_ptr: gl.tensor,
    x_scale_ptr: gl.tensor,
    x_scale_stride: gl.tensor,
    between_ptr: gl.tensor,
    between_scale_ptr: gl.tensor,
    between_scale_stride: gl.tensor,
    counts_ptr: gl.tensor,
    tiles_ptr: gl.tensor,
    pairs_ptr: gl.tensor,
    done_ptr: gl.tensor,
    capacity: gl.tensor,
    places: gl.tensor,
    rows: gl.shared_memory_descriptor,
    scales: gl.shared_memory_descriptor,
    ready: gl.shared_memory_descriptor,
    free: gl.shared_memory_descriptor,
    D: gl.constexpr,
    F: gl.constexpr,
    PAIRS: gl.constexpr,
    BLOCK_R: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    COPY: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    UP_TILES: gl.constexpr = F // 128
    DOWN_TILES: gl.constexpr = D // 128
    k = gl.arange(0, 128, layout=gl.SliceLayout(0, COPY))
    r_copy = gl.arange(0, BLOCK_R, layout=gl.SliceLayout(1, COPY))
    r_line = gl.arange(0, BLOCK_R, layout=LINE)
    stage, phase = 0, 1
    for index in range(gl.program_id(0), places * UP_TILES, gl.num_programs(0)):
        entry = gl.load(tiles_ptr + index // UP_TILES)
        first = (entry >> 16) * BLOCK_R
        pair, _ = _pairs_of(entry, first + r_copy, counts_ptr, pairs_ptr, capacity)
        line, _ = _pairs_of(entry, first + r_line, counts_ptr, pairs_ptr, capacity)
        offset = (pair // PAIRS).to(gl.int64)[:, None] * D + k[None, :]
        line = line // PAIRS
        for group in range(D // 128):
            mbarrier.wait(free.index(stage), phase)
            async_copy.async_copy_global_to_shared(rows.index(2 * stage), x_ptr + group * 128 + offset)
            async_copy.async_copy_global_to_shared(
                scales.index(2 * stage), x_scale_ptr + group * x_scale_stride + line
            )
            async_copy.mbarrier_arrive(ready.index(stage), increment_count=False)
            stage, phase = following(stage, phase, STAGES)
    for index in range(_first_down(places * UP_TILES), places * DOWN_TILES, gl.num_programs(0)):
        place = index // DOWN_TILES
        entry = gl.load(tiles_ptr + place)
        first = (entry >> 16) * BLOCK_R
        pair, _ = _pairs_of(entry, first + r_copy, counts_ptr, pairs_ptr, capacity)
        line, _ = _pairs_of(entry, first + r_line, counts_ptr, pairs_ptr, capacity)
        offset = pair.to(gl.int64)[:, None] * F + k[None, :]
        while gl.atomic_add(done_ptr + place, 0, sem="acquire") < UP_TILES:
            pass
        for group in range(F // 256):
            mbarrier.wait(free.index(stage), phase)
            async_copy.async_copy_global_to_shared(rows.index(2 * stage), between_ptr + group * 256 + offset)
            async_copy.async_copy_global_to_shared(
                rows.index(2 * stage + 1), between_ptr + group * 256 + 128 + offset
            )
            scale_at = between_scale_ptr + group * 2 * between_scale_stride + line
            async_copy.async_copy_global_to_shared(scales.index(2 * stage), scale_at)
            async_copy.async_copy_global_to_shared(
                scales.index(2 * stage + 1), scale_at + between_scale_stride
            )
            async_copy.mbarrier_arrive(ready.index(stage), increment_count=False)
            stage, phase = following(stage, phase, STAGES)
        if gl.atomic_add(done_ptr + place, 1, sem="relaxed") == UP_TILES + DOWN_TILES - 1:
            gl.store(done_ptr + place, 0)  # all have seen it: left as it was found


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _multiply(
    gate_up_scale_ptr: gl.tensor,
    down_scale_ptr: gl.tensor,
    between_ptr: gl.tensor,
    between_scale_ptr: gl.tensor,
    between_scale_stride: gl.tensor,
    out_ptr: gl.tensor,
    counts_ptr: gl.tensor,
    tiles_ptr: gl.tensor,
    pairs_ptr: gl.tensor,
    done_ptr: gl.tensor,
    capacity: gl.tensor,
    places: gl.tensor,
    weights: gl.shared_memory_descriptor,
    rows: gl.shared_memory_descriptor,
    scales: gl.shared_memory_descriptor,
    ready: gl.shared_memory_descriptor,
    free: gl.shared_memory_descriptor,
    D: gl.constexpr,
    F: gl.constexpr,
    BLOCK_R: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, BLOCK_R, 32])
    PER_ROW: gl.constexpr = gl.SliceLayout(0, ACC)
    OUT8: gl.constexpr = gl.BlockedLayout([16, 1], [8, 4], [1, 8], [0, 1])
    OUT16: gl.constexpr = gl.BlockedLayout([8, 1], [16, 2], [1, 8], [0, 1])
    UP_TILES: gl.constexpr = F // 128
    DOWN_TILES: gl.constexpr = D // 128
    stage, phase = 0, 0
    for index in range(gl.program_id(0), places * UP_TILES, gl.num_programs(0)):
        place = index // UP_TILES
        n_tile = index % UP_TILES
        entry = gl.load(tiles_ptr + place)
        w_scale_at = gate_up_scale_ptr + ((entry & 0xFFFF) * (2 * UP_TILES) + n_tile) * (D // 128)
        r = (entry >> 16) * BLOCK_R + gl.arange(0, BLOCK_R, layout=gl.SliceLayout(0, OUT8))
        pair, inside = _pairs_of(
            entry, r, counts_ptr, pairs_ptr, capacity
        )  # early: none waits for it at the end
        gate = gl.full([128, BLOCK_R], 0.0, gl.float32, ACC)
        up = gl.full([128, BLOCK_R], 0.0, gl.float32, ACC)
        gate_part = gl.full([128, BLOCK_R], 0.0, gl.float32, ACC)
        up_part = gl.full([128, BLOCK_R], 0.0, gl.float32, ACC)
        gate_scale = gl.load(w_scale_at)
        up_scale = gl.load(w_scale_at + UP_TILES * (D // 128))
        for group in range(D // 128):
            mbarrier.wait(ready.index(stage), phase)
            fence_async_shared()
            x = rows.index(2 * stage).permute((1, 0))
            gate_part = warpgroup_mma(weights.index(2 * stage), x, gate_part, use_acc=False, is_async=True)
            up_part = warpgroup_mma(weights.index(2 * stage + 1), x, up_part, use_acc=False, is_async=True)
            x_scale = scales.index(2 * stage).load(PER_ROW)
            by_gate = x_scale * gate_scale
            by_up = x_scale * up_scale
            ahead = gl.minimum(group + 1, D // 128 - 1)
            gate_scale = gl.load(w_scale_at + ahead)
            up_scale = gl.load(w_scale_at + UP_TILES * (D // 128) + ahead)
            gate_part, up_part = warpgroup_mma_wait(0, deps=[gate_part, up_part])
            release(free.index(stage))
            gate += gate_part * by_gate[None, :]
            up += up_part * by_up[None, :]
            stage, phase = following(stage, phase, STAGES)
        gate = gate.to(gl.bfloat16).to(gl.float32)
        hidden = gate / (1.0 + gl.exp(-gate)) * up.to(gl.bfloat16).to(gl.float32)
        bits = scale_bits_of(gl.max(gl.abs(hidden), axis=0))
        values = gl.convert_layout((hidden * inverse_of(bits)[None, :]).to(gl.float8e4nv), OUT8)
        n = n_tile * 128 + gl.arange(0, 128, layout=gl.SliceLayout(1, OUT8))
        gl.store(between_ptr + pair.to(gl.int64)[None, :] * F + n[:, None], values, mask=inside[None, :])
        bits = gl.convert_layout(bits, gl.SliceLayout(0, OUT8))
        scale_at = between_scale_ptr + n_tile * between_scale_stride + pair
        gl.store(scale_at, bits.to(gl.float32, bitcast=True), mask=inside)
        gl.thread_barrier()  # the atomic speaks for one thread: all must have stored
        gl.atomic_add(done_ptr + place, 1, sem="release")
    for index in range(_first_down(places * UP_TILES), places * DOWN_TILES, gl.num_programs(0)):
        place = index // DOWN_TILES
        n_tile = index % DOWN_TILES
        entry = gl.load(tiles_ptr + place)
        w_scale_at = down_scale_ptr + ((entry & 0xFFFF) * DOWN_TILES + n_tile) * (F // 128)
        r = (entry >> 16) * BLOCK_R + gl.arange(0, BLOCK_R, layout=gl.SliceLayout(0, OUT16))
        pair, inside = _pairs_of(entry, r, counts_ptr, pairs_ptr, capacity)
        total = gl.full([128, BLOCK_R], 0.0, gl.float32, ACC)
        even = gl.full([128, BLOCK_R], 0.0, gl.float32, ACC)
        odd = gl.full([128, BLOCK_R], 0.0, gl.float32, ACC)
        even_scale = gl.load(w_scale_at)
        odd_scale = gl.load(w_scale_at + 1)
        for group in range(F // 256):
            mbarrier.wait(ready.index(stage), phase)
            fence_async_shared()
            x = rows.index(2 * stage).permute((1, 0))
            even = warpgroup_mma(weights.index(2 * stage), x, even, use_acc=False, is_async=True)
            x = rows.index(2 * stage + 1).permute((1, 0))
            odd = warpgroup_mma(weights.index(2 * stage + 1), x, odd, use_acc=False, is_async=True)
            by_even = scales.index(2 * stage).load(PER_ROW) * even_scale
            by_odd = scales.index(2 * stage + 1).load(PER_ROW) * odd_scale
            ahead = gl.minimum(2 * group + 2, F // 128 - 2)
            even_scale = gl.load(w_scale_at + ahead)
            odd_scale = gl.load(w_scale_at + ahead + 1)
            even, odd = warpgroup_mma_wait(0, deps=[even, odd])
            release(free.index(stage))
            total += even * by_even[None, :]
            total += odd * by_odd[None, :]
            stage, phase = following(stage, phase, STAGES)
        n = n_tile * 128 + gl.arange(0, 128, layout=gl.SliceLayout(1, OUT16))
        values = gl.convert_layout(total.to(gl.bfloat16), OUT16)
        gl.store(out_ptr + pair.to(gl.int64)[None, :] * D + n[:, None], values, mask=inside[None, :])


@gluon.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def expert_mlp_kernel(
    x_ptr: gl.tensor,
    x_scale_ptr: gl.tensor,
    x_scale_stride: gl.int32,
    gate_up_desc: gl.tensor,
    gate_up_scale_ptr: gl.tensor,
    down_desc: gl.tensor,
    down_scale_ptr: gl.tensor,
    between_ptr: gl.tensor,
    between_scale_ptr: gl.tensor,
    between_scale_stride: gl.int32,
    out_ptr: gl.tensor,
    counts_ptr: gl.tensor,
    tiles_ptr: gl.tensor,
    pairs_ptr: gl.tensor,
    done_ptr: gl.tensor,
    capacity: gl.int32,
    shared_tiles: gl.int32,
    E: gl.constexpr,
    D: gl.constexpr,
    F: gl.constexpr,
    PAIRS: gl.constexpr,
    BLOCK_R: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 8, 2)
    weights = gl.allocate_shared_memory(gl.float8e4nv, [STAGES * 2, 128, 128], OPERAND)
    rows = gl.allocate_shared_memory(gl.float8e4nv, [STAGES * 2, BLOCK_R, 128], OPERAND)
    scales = gl.allocate_shared_memory(
        gl.float32, [STAGES * 2, BLOCK_R], gl.SwizzledSharedLayout(1, 1, 1, [0])
    )
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=129)  # every thread that gathers rows, and the weights
        mbarrier.init(free.index(stage), count=1)
    places = shared_tiles + gl.load(counts_ptr + E)
    gl.warp_specialize(
        [
            (
                _bring_rows,
                (
                    x_ptr, x_scale_ptr, x_scale_stride, between_ptr, between_scale_ptr, between_scale_stride,
                    counts_ptr, tiles_ptr, pairs_ptr, done_ptr, capacity, places, rows, scales, ready, free,
                    D, F, PAIRS, BLOCK_R, STAGES,
                ),
            ),
            (
                _multiply,
                (
                    gate_up_scale_ptr, down_scale_ptr, between_ptr, between_scale_ptr, between_scale_stride,
                    out_ptr, counts_ptr, tiles_ptr, pairs_ptr, done_ptr, capacity, places, weights, rows,
                    scales, ready, free, D, F, BLOCK_R, STAGES,
                ),
            ),
            (
                _bring_weights,
                (gate_up_desc, down_desc, tiles_ptr, places, weights, ready, free, D, F, STAGES),
            ),
        ],
        [MULTIPLIER_WARPS, 1],
        [MULTIPLIER_REGISTERS, WEIGHTS_REGISTERS],
    )  # fmt: skip
