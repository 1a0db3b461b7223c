"""Causal attention over keys and values of every head, with copies and softmax beside the products.

What kernels/dense_mla.py launches on an sm_90 where Triton has Gluon. A program stays and takes blocks of 128
queries of a head, one from the end of the rows and then its mirror from the beginning: every such pair has
the same work, and the heads under way at a time fit into the L2 cache. One part copies by TMA, always ahead;
two warpgroups of 64 queries each score a tile of 128 keys while they weigh the values of the tile before, so
that the matrix unit has work during the softmax. A head's 128 values are one group of FP8: they are quantised
as they are stored. Knows nothing of how keys and values were made.

Letters: as in kernels/dense_mla.py
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.quantize import inverse_of, scale_bits_of
from kernels.ring import following, release

STAGES = gl.constexpr(2)
REGISTERS = gl.constexpr(224)  # of a thread that multiplies
FIRST, SECOND = gl.constexpr(0), gl.constexpr(1)  # the warpgroups that multiply
SUMS = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
VARYING = ["rows", "first_position", "out_scale_stride"]


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _pair_at(index: gl.tensor, rows: gl.tensor) -> gl.tuple:
    """(head, block from the end, how many blocks, step to the other); the middle one is alone."""
    blocks = (rows + 127) // 128
    pairs = (blocks + 1) // 2
    low = index % pairs
    high = blocks - 1 - low
    return index // pairs, high, gl.where(high > low, 2, 1), low - high


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _tiles_of(first_row: gl.tensor, rows: gl.tensor, first_position: gl.tensor) -> gl.tensor:
    """How many tiles of 128 keys the last query of a block sees."""
    return (first_position + gl.minimum(first_row + 128, rows) + 127) // 128


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _produce(
    query_desc: gl.tensor,
    turned_desc: gl.tensor,
    made_desc: gl.tensor,
    rotary_desc: gl.tensor,
    rows: gl.tensor,
    first_position: gl.tensor,
    num_pairs: gl.tensor,
    rooms: gl.tuple,
    bars: gl.tuple,
) -> None:
    queries, turned, keys, rotaries, values = rooms
    asked, answered, keys_ready, keys_free, values_ready, values_free = bars
    stage, phase = 0, 1
    query_phase = gl.to_tensor(1)
    for index in range(gl.program_id(0), num_pairs, gl.num_programs(0)):
        head, block, num_blocks, step = _pair_at(index, rows)
        for _ in range(num_blocks):
            first_row = block * 128
            mbarrier.wait(answered, query_phase)
            mbarrier.expect(asked, 2 * 64 * (128 + 64) * 2)
            for half in gl.static_range(2):
                row = first_row + half * 64
                tma.async_copy_global_to_shared(query_desc, [row, head * 192], asked, queries.index(half))
                tma.async_copy_global_to_shared(turned_desc, [row, head * 64], asked, turned.index(half))
            for tile in range(_tiles_of(first_row, rows, first_position)):
                key = tile * 128
                mbarrier.wait(keys_free.index(stage), phase)
                bar = keys_ready.index(stage)
                mbarrier.expect(bar, 128 * (128 + 64) * 2)
                tma.async_copy_global_to_shared(made_desc, [key, head * 256], bar, keys.index(stage))
                tma.async_copy_global_to_shared(rotary_desc, [key, 0], bar, rotaries.index(stage))
                mbarrier.wait(values_free.index(stage), phase)
                bar = values_ready.index(stage)
                mbarrier.expect(bar, 128 * 128 * 2)
                tma.async_copy_global_to_shared(made_desc, [key, head * 256 + 128], bar, values.index(stage))
                stage, phase = following(stage, phase, STAGES)
            query_phase ^= 1
            block += step


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _begin_scores(rooms: gl.tuple, stage: gl.tensor, score: gl.tensor, WARPGROUP: gl.constexpr) -> gl.tensor:
    queries, turned, keys, rotaries, _ = rooms
    key = keys.index(stage).permute((1, 0))
    rotary = rotaries.index(stage).permute((1, 0))
    score = warpgroup_mma(queries.index(WARPGROUP), key, score, use_acc=False, is_async=True)
    return warpgroup_mma(turned.index(WARPGROUP), rotary, score, is_async=True)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _soften(
    score: gl.tensor,
    top_Q: gl.tensor,
    sum_Q: gl.tensor,
    position_Q: gl.tensor,
    first_key: gl.tensor,
    scale_log2: gl.tensor,
    MASKED: gl.constexpr,
) -> gl.tuple:
    """(weights, top, sum, by what the sums of the tiles before shrink). Every query sees key 0."""
    if MASKED:
        key = first_key + gl.arange(0, 128, layout=gl.SliceLayout(0, SUMS))
        score = gl.where(key[None, :] <= position_Q[:, None], score, float("-inf"))
    grown_Q = gl.maximum(top_Q, gl.max(score, 1))
    shrink_Q = gl.exp2((top_Q - grown_Q) * scale_log2)
    weight = gl.exp2(score * scale_log2 - (grown_Q * scale_log2)[:, None])
    return weight, grown_Q, sum_Q * shrink_Q + gl.sum(weight, 1), shrink_Q


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _as_operand(weight: gl.tensor) -> gl.tensor:
    return gl.convert_layout(weight.to(gl.bfloat16), gl.DotOperandLayout(0, SUMS, 2))


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _step(
    weight: gl.tensor,
    weighed: gl.tensor,
    top_Q: gl.tensor,
    sum_Q: gl.tensor,
    position_Q: gl.tensor,
    tile: gl.tensor,
    num_tiles: gl.tensor,
    stage: gl.tensor,
    phase: gl.tensor,
    scale_log2: gl.tensor,
    rooms: gl.tuple,
    bars: gl.tuple,
    WARPGROUP: gl.constexpr,
    MASKED: gl.constexpr,
) -> gl.tuple:
    """The values of the tile before, and the weights of this one. stage, phase: of the tile before."""
    _, answered, keys_ready, keys_free, values_ready, values_free = bars
    values = rooms[4].index(stage)
    free, ready, ready_phase = values_free.index(stage), values_ready.index(stage), phase
    stage, phase = following(stage, phase, STAGES)
    mbarrier.wait(keys_ready.index(stage), phase)
    score = gl.full([64, 128], 0.0, gl.float32, SUMS)
    score = _begin_scores(rooms, stage, score, WARPGROUP)
    mbarrier.wait(ready, ready_phase)
    weighed = warpgroup_mma(weight, values, weighed, is_async=True)
    score = warpgroup_mma_wait(1, deps=[score])
    release(keys_free.index(stage))
    mbarrier.arrive(answered, count=1, pred=tile + 1 == num_tiles)
    score, top_Q, sum_Q, shrink_Q = _soften(score, top_Q, sum_Q, position_Q, tile * 128, scale_log2, MASKED)
    weighed = warpgroup_mma_wait(0, deps=[weighed])
    release(free)
    return _as_operand(score), weighed * shrink_Q[:, None], top_Q, sum_Q, stage, phase


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _store(
    out_ptr: gl.tensor,
    out_scale_ptr: gl.tensor,
    out_scale_stride: gl.tensor,
    values: gl.tensor,
    first_row: gl.tensor,
    head: gl.tensor,
    rows: gl.tensor,
    HEADS: gl.constexpr,
) -> None:
    """In FP8 with a scale a row, as kernels/absorb.py makes them."""
    WHOLE: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [4, 1], [1, 0])
    bits = scale_bits_of(gl.max(gl.abs(values), axis=1))
    quantized = gl.convert_layout((values * inverse_of(bits)[:, None]).to(gl.float8e4nv), WHOLE)
    row = first_row + gl.arange(0, 64, layout=gl.SliceLayout(1, WHOLE))
    dims = gl.arange(0, 128, layout=gl.SliceLayout(0, WHOLE))
    at = out_ptr + row.to(gl.int64)[:, None] * (HEADS * 128) + head * 128 + dims[None, :]
    gl.store(at, quantized, mask=(row < rows)[:, None])
    row = first_row + gl.arange(0, 64, layout=gl.SliceLayout(1, SUMS))
    gl.store(
        out_scale_ptr + head * out_scale_stride + row, bits.to(gl.float32, bitcast=True), mask=row < rows
    )


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _attend(
    out_ptr: gl.tensor,
    out_scale_ptr: gl.tensor,
    out_scale_stride: gl.tensor,
    rows: gl.tensor,
    first_position: gl.tensor,
    scale_log2: gl.tensor,
    num_pairs: gl.tensor,
    rooms: gl.tuple,
    bars: gl.tuple,
    HEADS: gl.constexpr,
    WARPGROUP: gl.constexpr,
) -> None:
    asked, answered, keys_ready, keys_free, values_ready, values_free = bars
    stage, phase = 0, 0  # of the next tile
    query_phase = gl.to_tensor(0)
    for index in range(gl.program_id(0), num_pairs, gl.num_programs(0)):
        head, block, num_blocks, step = _pair_at(index, rows)
        for _ in range(num_blocks):
            own = block * 128 + WARPGROUP * 64
            position_Q = first_position + own + gl.arange(0, 64, layout=gl.SliceLayout(1, SUMS))
            num_tiles = _tiles_of(block * 128, rows, first_position)
            # Tiles that all of the warpgroup's queries see whole: all but the last or the last two.
            num_whole = gl.minimum((first_position + own + 1) // 128, num_tiles)
            top_Q = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, SUMS))
            sum_Q = gl.full([64], 0.0, gl.float32, gl.SliceLayout(1, SUMS))
            weighed = gl.full([64, 128], 0.0, gl.float32, SUMS)
            mbarrier.wait(asked, query_phase)
            mbarrier.wait(keys_ready.index(stage), phase)
            score = _begin_scores(rooms, stage, gl.full([64, 128], 0.0, gl.float32, SUMS), WARPGROUP)
            score = warpgroup_mma_wait(0, deps=[score])
            release(keys_free.index(stage))
            mbarrier.arrive(answered, count=1, pred=num_tiles == 1)
            score, top_Q, sum_Q, _ = _soften(score, top_Q, sum_Q, position_Q, 0, scale_log2, True)
            weight = _as_operand(score)
            for tile in range(1, num_whole):
                weight, weighed, top_Q, sum_Q, stage, phase = _step(
                    weight, weighed, top_Q, sum_Q, position_Q, tile, num_tiles, stage, phase,
                    scale_log2, rooms, bars, WARPGROUP, False,
                )  # fmt: skip
            for tile in range(gl.maximum(num_whole, 1), num_tiles):
                weight, weighed, top_Q, sum_Q, stage, phase = _step(
                    weight, weighed, top_Q, sum_Q, position_Q, tile, num_tiles, stage, phase,
                    scale_log2, rooms, bars, WARPGROUP, True,
                )  # fmt: skip
            mbarrier.wait(values_ready.index(stage), phase)
            weighed = warpgroup_mma(weight, rooms[4].index(stage), weighed, is_async=True)
            weighed = warpgroup_mma_wait(0, deps=[weighed])
            release(values_free.index(stage))
            stage, phase = following(stage, phase, STAGES)
            weighed = weighed * (1.0 / sum_Q)[:, None]
            _store(out_ptr, out_scale_ptr, out_scale_stride, weighed, own, head, rows, HEADS)
            query_phase ^= 1
            block += step


@gluon.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def dense_mla_kernel(
    query_desc: gl.tensor,
    turned_desc: gl.tensor,
    made_desc: gl.tensor,
    rotary_desc: gl.tensor,
    out_ptr: gl.tensor,
    out_scale_ptr: gl.tensor,
    out_scale_stride: gl.int32,
    rows: gl.int32,
    first_position: gl.int32,
    scale_log2: gl.float32,
    HEADS: gl.constexpr,
) -> None:
    WIDE: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    queries = gl.allocate_shared_memory(gl.bfloat16, [2, 64, 128], WIDE)
    turned = gl.allocate_shared_memory(gl.float16, [2, 64, 64], WIDE)
    keys = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 128, 128], WIDE)
    rotaries = gl.allocate_shared_memory(gl.float16, [STAGES, 128, 64], WIDE)
    values = gl.allocate_shared_memory(gl.bfloat16, [STAGES, 128, 128], WIDE)
    asked = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    answered = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    keys_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    keys_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    values_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    values_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(asked, count=1)
    mbarrier.init(answered, count=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(keys_ready.index(stage), count=1)
        mbarrier.init(keys_free.index(stage), count=2)
        mbarrier.init(values_ready.index(stage), count=1)
        mbarrier.init(values_free.index(stage), count=2)
    rooms = (queries, turned, keys, rotaries, values)
    bars = (asked, answered, keys_ready, keys_free, values_ready, values_free)
    num_pairs = HEADS * (((rows + 127) // 128 + 1) // 2)
    gl.warp_specialize(
        [
            (
                _produce,
                (
                    query_desc, turned_desc, made_desc, rotary_desc, rows, first_position, num_pairs, rooms,
                    bars,
                ),
            ),
            (
                _attend,
                (
                    out_ptr, out_scale_ptr, out_scale_stride, rows, first_position, scale_log2, num_pairs,
                    rooms, bars, HEADS, FIRST,
                ),
            ),
            (
                _attend,
                (
                    out_ptr, out_scale_ptr, out_scale_stride, rows, first_position, scale_log2, num_pairs,
                    rooms, bars, HEADS, SECOND,
                ),
            ),
        ],
        [4, 4],
        [REGISTERS, REGISTERS],
    )  # fmt: skip
