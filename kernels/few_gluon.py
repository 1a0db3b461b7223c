"""Few FP8 rows times a block-scaled FP8 weight, with copies beside the products.

What kernels/fp8_gemm.py launches on an sm_90 where Triton has Gluon. A program stays and takes tile after
tile: one part of it keeps a ring of shared memory full of weights and rows, by TMA, and is at the next tile
while eight warps still multiply this one. The weight is the M operand and K is split as there, so the bits
are the same. Knows nothing of who asks.

Letters: R rows  K inner dimension  N outputs  S splits of K
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.ring import following, release

MULTIPLIER_WARPS = gl.constexpr(8)
MULTIPLIER_REGISTERS = gl.constexpr(208)  # of a thread
VARYING = ["x_scale_stride", "rows"]


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _tile_at(index: gl.tensor, rows: gl.tensor, N: gl.constexpr, BLOCK_R: gl.constexpr) -> gl.tuple:
    """(first row, tile of outputs, split); tiles that share weights are neighbours."""
    row_tiles = (rows + BLOCK_R - 1) // BLOCK_R
    across = index // row_tiles
    return index % row_tiles * BLOCK_R, across % (N // 128), across // (N // 128)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _bring(
    x_desc: gl.tensor,
    x_scale_ptr: gl.tensor,
    x_scale_stride: gl.tensor,
    w_desc: gl.tensor,
    rows: gl.tensor,
    num_tiles: gl.tensor,
    ring: gl.tuple,
    N: gl.constexpr,
    GROUPS: gl.constexpr,
    BLOCK_R: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    LINE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    w_ring, x_ring, scale_ring, ready, free = ring
    stage, phase = 0, 1
    for index in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        first, tile, split = _tile_at(index, rows, N, BLOCK_R)
        line = gl.minimum(first + gl.arange(0, BLOCK_R, layout=LINE), rows - 1)
        for group in range(split * GROUPS, (split + 1) * GROUPS):
            mbarrier.wait(free.index(stage), phase)
            bar = ready.index(stage)
            mbarrier.expect(bar, 16384 + BLOCK_R * 128)
            tma.async_copy_global_to_shared(w_desc, [tile * 128, group * 128], bar, w_ring.index(stage))
            tma.async_copy_global_to_shared(x_desc, [first, group * 128], bar, x_ring.index(stage))
            scale_at = x_scale_ptr + group * x_scale_stride + line
            async_copy.async_copy_global_to_shared(scale_ring.index(stage), scale_at)
            async_copy.mbarrier_arrive(bar, increment_count=False)
            stage, phase = following(stage, phase, STAGES)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _multiply(
    w_scale_ptr: gl.tensor,
    out_ptr: gl.tensor,
    rows: gl.tensor,
    num_tiles: gl.tensor,
    ring: gl.tuple,
    N: gl.constexpr,
    GROUPS: gl.constexpr,
    SPLITS: gl.constexpr,
    BLOCK_R: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [8, 1], [16, BLOCK_R, 32])
    # Eight threads hold eight outputs of a row: in fp32 a whole sector, in bf16 half of one.
    WHOLE: gl.constexpr = gl.BlockedLayout([8, 1], [16, 2], [1, 8], [0, 1])
    LAYOUT: gl.constexpr = SUMS if out_ptr.dtype.element_ty == gl.float32 else WHOLE
    w_ring, x_ring, scale_ring, ready, free = ring
    stage, phase = 0, 0
    for index in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        first, tile, split = _tile_at(index, rows, N, BLOCK_R)
        w_scale_at = w_scale_ptr + (tile * SPLITS + split) * GROUPS
        total = gl.full([128, BLOCK_R], 0.0, gl.float32, SUMS)
        part = gl.full([128, BLOCK_R], 0.0, gl.float32, SUMS)  # anew: else it lives while results are stored
        w_scale = gl.load(w_scale_at)
        for group in range(GROUPS):
            mbarrier.wait(ready.index(stage), phase)
            x = x_ring.index(stage).permute((1, 0))
            part = warpgroup_mma(w_ring.index(stage), x, part, use_acc=False, is_async=True)
            scale = scale_ring.index(stage).load(gl.SliceLayout(0, SUMS)) * w_scale
            w_scale = gl.load(w_scale_at + gl.minimum(group + 1, GROUPS - 1))
            part = warpgroup_mma_wait(0, deps=[part])
            release(free.index(stage))
            total += part * scale[None, :]
            stage, phase = following(stage, phase, STAGES)
        values = gl.convert_layout(total.to(out_ptr.dtype.element_ty), LAYOUT)
        n = tile * 128 + gl.arange(0, 128, layout=gl.SliceLayout(1, LAYOUT))
        r = first + gl.arange(0, BLOCK_R, layout=gl.SliceLayout(0, LAYOUT))
        at = out_ptr + (split * rows + r).to(gl.int64)[None, :] * N + n[:, None]
        gl.store(at, values, mask=(r < rows)[None, :])


@gluon.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def few_kernel(
    x_desc: gl.tensor,
    x_scale_ptr: gl.tensor,
    x_scale_stride: gl.int32,
    w_desc: gl.tensor,
    w_scale_ptr: gl.tensor,
    out_ptr: gl.tensor,
    rows: gl.int32,
    N: gl.constexpr,
    K: gl.constexpr,
    SPLITS: gl.constexpr,
    BLOCK_R: gl.constexpr,
    STAGES: gl.constexpr,
) -> None:
    GROUPS: gl.constexpr = K // 128 // SPLITS
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 8, 2)
    w_ring = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, 128, 128], OPERAND)
    x_ring = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCK_R, 128], OPERAND)
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    scale_ring = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_R], LINE)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=129)  # the announced bytes, and all who bring scales
        mbarrier.init(free.index(stage), count=1)
    ring = (w_ring, x_ring, scale_ring, ready, free)
    num_tiles = (rows + BLOCK_R - 1) // BLOCK_R * (N // 128) * SPLITS
    gl.warp_specialize(
        [
            (
                _bring,
                (
                    x_desc, x_scale_ptr, x_scale_stride, w_desc, rows, num_tiles, ring, N, GROUPS, BLOCK_R,
                    STAGES,
                ),
            ),
            (
                _multiply,
                (w_scale_ptr, out_ptr, rows, num_tiles, ring, N, GROUPS, SPLITS, BLOCK_R, STAGES),
            ),
        ],
        [MULTIPLIER_WARPS],
        [MULTIPLIER_REGISTERS],
    )  # fmt: skip
