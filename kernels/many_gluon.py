"""Many FP8 rows times block-scaled FP8 weights, with copies beside the products.

What kernels/fp8_gemm_many.py and kernels/expert_gemm_many.py launch on an sm_90 where Triton has Gluon. A
program stays and takes tile after tile. One part of it brings operands into a ring of shared memory, weights
and dense rows by TMA, the rows of an expert by gathering; two warpgroups multiply 64 rows each, in turns:
while one adds the sum of 128 of K, scaled, to its own, the other's products keep the matrix unit busy. Tiles
are 128 rows by 256 outputs, or by 128 where K is summed in several parts: their sum takes the registers.
Knows nothing of who asks.

Letters: R rows  K inner dimension  N outputs  E experts  P pairs
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

# Of a thread that multiplies: 192 are sums. With more, and so fewer for the producer, ptxas spills.
REGISTERS = gl.constexpr(224)
BAND = gl.constexpr(16)  # tiles of rows that share weights in the L2 cache before the next such band begins
VARYING = ["x_scale_stride", "out_scale_stride", "rows", "capacity", "shared_tiles"]
FIRST, SECOND = gl.constexpr(0), gl.constexpr(1)  # the warpgroups that multiply
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32]))


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _tile_at(
    index: gl.tensor,
    lists: gl.tuple,
    rows: gl.tensor,
    LISTED: gl.constexpr,
    ACROSS: gl.constexpr,
) -> gl.tuple:
    """(expert, first of its rows in the tile, how many rows it has, which tile of outputs)"""
    if LISTED:
        entry = gl.load(lists[1] + index // ACROSS)
        expert = entry & 0xFFFF
        return expert, (entry >> 16) * 128, gl.load(lists[0] + expert), index % ACROSS
    else:  # noqa: RET505  (only one of them is compiled)
        band = index // (BAND * ACROSS)
        within = index - band * (BAND * ACROSS)
        high = gl.minimum((rows + 127) // 128 - band * BAND, BAND)
        return index * 0, (band * BAND + within % high) * 128, rows, within // high


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _pairs_at(
    r: gl.tensor, expert: gl.tensor, count: gl.tensor, lists: gl.tuple, capacity: gl.tensor
) -> gl.tensor:
    """The pairs of an expert's rows; 0 beyond the last."""
    return gl.load(lists[2] + expert * capacity + r, mask=r < count, other=0)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _produce(
    x_ptr: gl.tensor,
    x_desc: gl.tensor,
    x_scale_ptr: gl.tensor,
    x_scale_stride: gl.tensor,
    w_desc: gl.tensor,
    lists: gl.tuple,
    rows: gl.tensor,
    capacity: gl.tensor,
    num_tiles: gl.tensor,
    ring: gl.tuple,
    N: gl.constexpr,
    K: gl.constexpr,
    BLOCKS: gl.constexpr,
    APART: gl.constexpr,
    ACROSS: gl.constexpr,
    LISTED: gl.constexpr,
    PAIRS: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    COPY: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    BYTES: gl.constexpr = 16384 * (BLOCKS if LISTED else BLOCKS + 1)
    x_ring, w_ring, scale_ring, ready, free = ring
    k = gl.arange(0, 128, layout=gl.SliceLayout(0, COPY))
    stage, phase = 0, 1
    last = 0
    begun = gl.to_tensor(False)
    for index in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        expert, first, count, tile = _tile_at(index, lists, rows, LISTED, ACROSS)
        w_row = expert * N + tile * (128 * BLOCKS if APART == 128 else 128)
        line = first + gl.arange(0, 128, layout=LINE)
        row = first + gl.arange(0, 128, layout=gl.SliceLayout(1, COPY))
        if LISTED:
            line = _pairs_at(line, expert, count, lists, capacity) // PAIRS
            row = _pairs_at(row, expert, count, lists, capacity) // PAIRS
        else:
            line = gl.minimum(line, count - 1)
        x_offset = row.to(gl.int64)[:, None] * K + k[None, :]
        for group in range(K // 128):
            mbarrier.wait(free.index(stage), phase)
            bar = ready.index(stage)
            mbarrier.expect(bar, BYTES)
            for block in gl.static_range(BLOCKS):
                at = [w_row + block * APART, group * 128]
                tma.async_copy_global_to_shared(w_desc, at, bar, w_ring.index(stage * BLOCKS + block))
            scale_at = x_scale_ptr + group * x_scale_stride + line
            async_copy.async_copy_global_to_shared(scale_ring.index(stage), scale_at)
            if LISTED:
                async_copy.async_copy_global_to_shared(x_ring.index(stage), x_ptr + group * 128 + x_offset)
                # The matrix unit reads what threads copied only behind a fence of theirs, a step later.
                async_copy.commit_group()
                async_copy.wait_group(1)
                fence_async_shared()
                gl.thread_barrier()
                mbarrier.arrive(ready.index(last), count=1, pred=begun)
                begun = gl.to_tensor(True)
                last = stage
            else:
                tma.async_copy_global_to_shared(x_desc, [first, group * 128], bar, x_ring.index(stage))
                async_copy.mbarrier_arrive(bar, increment_count=False)
            stage, phase = following(stage, phase, STAGES)
    if LISTED:
        async_copy.wait_group(0)
        fence_async_shared()
        gl.thread_barrier()
        mbarrier.arrive(ready.index(last), count=1, pred=begun)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _store(
    out_ptr: gl.tensor,
    values: gl.tensor,
    first: gl.tensor,
    expert: gl.tensor,
    count: gl.tensor,
    lists: gl.tuple,
    capacity: gl.tensor,
    WIDTH: gl.constexpr,
    LISTED: gl.constexpr,
) -> None:
    """64 x 128 of them, where the rows of the tile belong."""
    BYTES: gl.constexpr = values.dtype.primitive_bitwidth // 8
    WHOLE: gl.constexpr = gl.BlockedLayout([1, 16 // BYTES], [4 // BYTES, 8 * BYTES], [4, 1], [1, 0])
    # In fp32 what four threads hold of a row fills a sector as it is.
    LAYOUT: gl.constexpr = values.type.layout if BYTES == 4 else WHOLE
    values = gl.convert_layout(values, LAYOUT)
    r = first + gl.arange(0, 64, layout=gl.SliceLayout(1, LAYOUT))
    n = gl.arange(0, 128, layout=gl.SliceLayout(0, LAYOUT))
    place = r
    if LISTED:
        place = _pairs_at(r, expert, count, lists, capacity)
    at = out_ptr + place.to(gl.int64)[:, None] * WIDTH + n[None, :]
    gl.store(at, values, mask=(r < count)[:, None])


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _store_activated(
    out_ptr: gl.tensor,
    scale_ptr: gl.tensor,
    gate: gl.tensor,
    up: gl.tensor,
    first: gl.tensor,
    expert: gl.tensor,
    count: gl.tensor,
    lists: gl.tuple,
    capacity: gl.tensor,
    WIDTH: gl.constexpr,
) -> None:
    """silu(gate) * up in FP8 with a scale a row, as kernels/expert_gemm.py makes it."""
    gate = gate.to(gl.bfloat16).to(gl.float32)
    hidden = gate / (1.0 + gl.exp(-gate)) * up.to(gl.bfloat16).to(gl.float32)
    bits = scale_bits_of(gl.max(gl.abs(hidden), axis=1))
    values = (hidden * inverse_of(bits)[:, None]).to(gl.float8e4nv)
    _store(out_ptr, values, first, expert, count, lists, capacity, WIDTH, True)
    r = first + gl.arange(0, 64, layout=gl.SliceLayout(1, SUMS))
    pair = _pairs_at(r, expert, count, lists, capacity)
    gl.store(scale_ptr + pair, bits.to(gl.float32, bitcast=True), mask=r < count)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _made_here(sums: gl.tensor) -> gl.tensor:
    """The same. LLVM may else add up behind the next product, and keep this one in 64 registers till then."""
    return gl.inline_asm_elementwise("mov.f32 $0, $1;", "=f,f", [sums], gl.float32, is_pure=False, pack=1)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _begin(
    x: gl.shared_memory_descriptor,
    w: gl.shared_memory_descriptor,
    part: gl.tensor,
    turns: gl.shared_memory_descriptor,
    turn: gl.tensor,
    TURNS: gl.constexpr,
    WARPGROUP: gl.constexpr,
) -> gl.tuple:
    """(part in the making, next turn). Warpgroups whose products mix end together, and add up together."""
    if TURNS:
        mbarrier.wait(turns.index(WARPGROUP), turn)
    part = warpgroup_mma(x, w.permute((1, 0)), part, use_acc=False, is_async=True)
    if TURNS:
        mbarrier.arrive(turns.index(1 - WARPGROUP), count=1)
    return part, turn ^ 1


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _multiply(
    w_scale_ptr: gl.tensor,
    out_ptr: gl.tensor,
    out_scale_ptr: gl.tensor,
    out_scale_stride: gl.tensor,
    lists: gl.tuple,
    rows: gl.tensor,
    capacity: gl.tensor,
    num_tiles: gl.tensor,
    ring: gl.tuple,
    turns: gl.shared_memory_descriptor,
    N: gl.constexpr,
    K: gl.constexpr,
    SPLITS: gl.constexpr,
    BLOCKS: gl.constexpr,
    APART: gl.constexpr,
    ACROSS: gl.constexpr,
    LISTED: gl.constexpr,
    ACTIVATED: gl.constexpr,
    STAGES: gl.constexpr,
    WARPGROUP: gl.constexpr,
) -> None:
    """Left: the sums of the first block of outputs; right: of the second. Total: of all splits so far."""
    OWN: gl.constexpr = WARPGROUP * 64
    GROUPS: gl.constexpr = K // 128
    BESIDE: gl.constexpr = (BLOCKS - 1) * (APART // 128) * GROUPS  # from a block's scales to the other's
    TURNS: gl.constexpr = SPLITS == 1  # with more, 3 to 10 % slower
    x_ring, w_ring, scale_ring, ready, free = ring
    stage, phase = 0, 0
    turn = gl.to_tensor(1 - WARPGROUP)
    for index in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        expert, first, count, tile = _tile_at(index, lists, rows, LISTED, ACROSS)
        w_scale_at = w_scale_ptr + (expert * (N // 128) + tile * (BLOCKS if APART == 128 else 1)) * GROUPS
        part = gl.full([64, 128], 0.0, gl.float32, SUMS)  # anew: else it lives while results are stored
        total = gl.full([64, 128], 0.0, gl.float32, SUMS)
        left = gl.full([64, 128], 0.0, gl.float32, SUMS)
        right = gl.full([64, 128], 0.0, gl.float32, SUMS)
        left_scale = gl.load(w_scale_at)
        right_scale = gl.load(w_scale_at + BESIDE)
        for split in range(SPLITS):
            left = gl.full([64, 128], 0.0, gl.float32, SUMS)
            for group in range(GROUPS // SPLITS):
                mbarrier.wait(ready.index(stage), phase)
                x = x_ring.index(stage).slice(OWN, 64, dim=0)
                w = w_ring.index(stage * BLOCKS)
                part, turn = _begin(x, w, part, turns, turn, TURNS, WARPGROUP)
                x_scale = scale_ring.index(stage).slice(OWN, 64, dim=0).load(gl.SliceLayout(1, SUMS))
                by_left, by_right = x_scale * left_scale, x_scale * right_scale
                ahead = gl.minimum(split * (GROUPS // SPLITS) + group + 1, GROUPS - 1)
                left_scale = gl.load(w_scale_at + ahead)
                right_scale = gl.load(w_scale_at + BESIDE + ahead)
                part = warpgroup_mma_wait(0, deps=[part])
                if BLOCKS == 1:
                    release(free.index(stage))
                left = _made_here(left + part * by_left[:, None])
                if BLOCKS == 2:
                    w = w_ring.index(stage * 2 + 1)
                    part, turn = _begin(x, w, part, turns, turn, TURNS, WARPGROUP)
                    part = warpgroup_mma_wait(0, deps=[part])
                    release(free.index(stage))
                    right += part * by_right[:, None]
                stage, phase = following(stage, phase, STAGES)
            if SPLITS > 1:
                total += left
        first += OWN
        if ACTIVATED:
            scale_ptr = out_scale_ptr + tile * out_scale_stride
            at = out_ptr + tile * 128
            _store_activated(at, scale_ptr, left, right, first, expert, count, lists, capacity, N // 2)
        else:
            values = (total if SPLITS > 1 else left).to(out_ptr.dtype.element_ty)
            at = out_ptr + tile * (128 * BLOCKS)
            _store(at, values, first, expert, count, lists, capacity, N, LISTED)
            if BLOCKS == 2:
                values = right.to(out_ptr.dtype.element_ty)
                _store(at + 128, values, first, expert, count, lists, capacity, N, LISTED)


@gluon.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def many_kernel(
    x_ptr: gl.tensor,
    x_desc: gl.tensor,
    x_scale_ptr: gl.tensor,
    x_scale_stride: gl.int32,
    w_desc: gl.tensor,
    w_scale_ptr: gl.tensor,
    out_ptr: gl.tensor,
    out_scale_ptr: gl.tensor,
    out_scale_stride: gl.int32,
    counts_ptr: gl.tensor,
    tiles_ptr: gl.tensor,
    pairs_ptr: gl.tensor,
    rows: gl.int32,
    capacity: gl.int32,
    shared_tiles: gl.int32,
    E: gl.constexpr,
    N: gl.constexpr,
    K: gl.constexpr,
    SPLITS: gl.constexpr,
    BLOCKS: gl.constexpr,
    LISTED: gl.constexpr,
    ACTIVATED: gl.constexpr,
    PAIRS: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    """LISTED: rows by kernels/routes.py; else all there are. ACTIVATED: outputs are gate, then up."""
    # A tile's second block of outputs lies beside the first, or is the part of `up` that the first gates.
    APART: gl.constexpr = N // 2 if ACTIVATED else 128
    ACROSS: gl.constexpr = N // (128 * BLOCKS)
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 8, 2)
    x_ring = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, 128, 128], OPERAND)
    w_ring = gl.allocate_shared_memory(gl.float8e4nv, [STAGES * BLOCKS, 128, 128], OPERAND)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    scale_ring = gl.allocate_shared_memory(gl.float32, [STAGES, 128], LINE)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        # The announced bytes and the producer's word, or that of each of its threads.
        mbarrier.init(ready.index(stage), count=2 if LISTED else 129)
        mbarrier.init(free.index(stage), count=2)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    mbarrier.init(turns.index(0), count=1)
    mbarrier.init(turns.index(1), count=1)
    ring = (x_ring, w_ring, scale_ring, ready, free)
    if LISTED:
        num_tiles = (shared_tiles + gl.load(counts_ptr + E)) * ACROSS
    else:
        num_tiles = (rows + 127) // 128 * ACROSS
    lists = (counts_ptr, tiles_ptr, pairs_ptr)
    gl.warp_specialize(
        [
            (
                _produce,
                (
                    x_ptr, x_desc, x_scale_ptr, x_scale_stride, w_desc, lists, rows, capacity, num_tiles,
                    ring, N, K, BLOCKS, APART, ACROSS, LISTED, PAIRS, STAGES,
                ),
            ),
            (
                _multiply,
                (
                    w_scale_ptr, out_ptr, out_scale_ptr, out_scale_stride, lists, rows, capacity, num_tiles,
                    ring, turns, N, K, SPLITS, BLOCKS, APART, ACROSS, LISTED, ACTIVATED, STAGES, FIRST,
                ),
            ),
            (
                _multiply,
                (
                    w_scale_ptr, out_ptr, out_scale_ptr, out_scale_stride, lists, rows, capacity, num_tiles,
                    ring, turns, N, K, SPLITS, BLOCKS, APART, ACROSS, LISTED, ACTIVATED, STAGES, SECOND,
                ),
            ),
        ],
        [4, 4],
        [REGISTERS, REGISTERS],
    )  # fmt: skip
