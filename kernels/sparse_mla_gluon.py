"""Sparse MLA decode with de-quantisation beside the products.

What kernels/sparse_mla.py launches on an sm_90 where Triton has Gluon. Three parts of a program run side by
side: the producer gathers keys and de-quantises them into two shared buffers, the scorer and the weigher of
kernels/sparse_mla_warps.py multiply. A tile's chain is scores, softmax, values; gathering and de-quantisation
hide behind it. Knows nothing of how slots were chosen.

Letters: as in kernels/sparse_mla.py
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from kernels.sparse_mla_warps import rooms_of_a_program, score, used_tiles, weigh

PRODUCER_WARPS = gl.constexpr(4)
# Of a thread; the scorer has what is left, 216. Below 168 the weigher's products wait for each other.
WEIGHER_REGISTERS = gl.constexpr(168)
PRODUCER_REGISTERS = gl.constexpr(120)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def _produce(
    slots_ptr: gl.tensor,
    latent_ptr: gl.tensor,
    scale_ptr: gl.tensor,
    rotary_ptr: gl.tensor,
    rooms: gl.tuple,
    bars: gl.tuple,
    num_tiles: gl.tensor,
) -> None:
    """Tiles of 64 keys, in registers while the consumers hold both buffers. Eight threads have a key."""
    LATENT: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [PRODUCER_WARPS, 1], [1, 0])
    ROTARY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [PRODUCER_WARPS, 1], [1, 0])
    SCALE: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [PRODUCER_WARPS, 1], [1, 0])
    PER_KEY: gl.constexpr = gl.SliceLayout(1, LATENT)
    _, _, keys, rotaries, _, _ = rooms
    ready, free, _, _ = bars
    key = gl.arange(0, 64, layout=PER_KEY)
    dims = gl.arange(0, 128, layout=gl.SliceLayout(0, LATENT))
    rotary_dims = gl.arange(0, 64, layout=gl.SliceLayout(0, ROTARY))
    groups = gl.arange(0, 4, layout=gl.SliceLayout(0, SCALE))
    chosen = gl.load(slots_ptr + key)
    for tile in range(num_tiles):
        buffer = tile % 2
        slot = gl.maximum(chosen, 0).to(gl.int64)
        latent = latent_ptr + slot[:, None] * 512 + dims[None, :]
        v0 = gl.load(latent)
        v1 = gl.load(latent + 128)
        v2 = gl.load(latent + 256)
        v3 = gl.load(latent + 384)
        scale_slot = gl.convert_layout(slot, gl.SliceLayout(1, SCALE))
        scales = gl.load(scale_ptr + scale_slot[:, None] * 4 + groups[None, :]).to(gl.float16)
        rotary_slot = gl.convert_layout(slot, gl.SliceLayout(1, ROTARY))
        rotary = gl.load(rotary_ptr + rotary_slot[:, None] * 64 + rotary_dims[None, :])
        even, odd = gl.split(gl.reshape(scales, [64, 2, 2]))
        s0, s2 = gl.split(even)
        s1, s3 = gl.split(odd)
        mbarrier.wait(free.index(buffer), ((tile // 2) & 1) ^ 1)
        chosen = gl.load(slots_ptr + gl.minimum(tile + 1, num_tiles - 1) * 64 + key)
        rotaries.index(buffer).store(rotary)
        keys[0].index(buffer).store(v0.to(gl.float16) * gl.convert_layout(s0, PER_KEY)[:, None])
        keys[1].index(buffer).store(v1.to(gl.float16) * gl.convert_layout(s1, PER_KEY)[:, None])
        keys[2].index(buffer).store(v2.to(gl.float16) * gl.convert_layout(s2, PER_KEY)[:, None])
        keys[3].index(buffer).store(v3.to(gl.float16) * gl.convert_layout(s3, PER_KEY)[:, None])
        fence_async_shared()
        gl.thread_barrier()  # arrive speaks for one thread: all must have written
        mbarrier.arrive(ready.index(buffer), count=1)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def sparse_mla_gluon_kernel(
    query_ptr: gl.tensor,
    slots_ptr: gl.tensor,
    latent_ptr: gl.tensor,
    scale_ptr: gl.tensor,
    rotary_ptr: gl.tensor,
    out_ptr: gl.tensor,
    lse_ptr: gl.tensor,
    scale_log2: gl.float32,
    HEADS: gl.constexpr,
    SLOTS: gl.constexpr,
    SPLITS: gl.constexpr,
) -> None:
    """lse_ptr: written for one split, too."""
    first_head = gl.program_id(0) * 64
    split, row = gl.program_id(1), gl.program_id(2).to(gl.int64)
    SHARE: gl.constexpr = SLOTS // SPLITS
    slots_ptr += row * SLOTS + split * SHARE
    query_ptr += (row * HEADS + first_head) * 576
    first_row = ((row * SPLITS + split) * HEADS + first_head).to(gl.int32)
    rooms, bars = rooms_of_a_program()
    num_tiles = used_tiles(slots_ptr, SHARE)
    scored = (query_ptr, slots_ptr, out_ptr, lse_ptr, rooms, bars, num_tiles, scale_log2, first_row)
    gl.warp_specialize(
        [
            (score, scored + (HEADS, 1, SHARE // 64)),  # noqa: RUF005
            (weigh, (out_ptr, rooms, bars, num_tiles, first_row, HEADS, 1, SHARE // 64)),
            (_produce, (slots_ptr, latent_ptr, scale_ptr, rotary_ptr, rooms, bars, num_tiles)),
        ],
        [4, PRODUCER_WARPS],
        [WEIGHER_REGISTERS, PRODUCER_REGISTERS],
    )
