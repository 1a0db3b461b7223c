"""The routes' list of tiles once more, in order of experts.

The gate lists tiles as its rows come, which is at once but without order. With few rows no two tiles share an
expert; with many they do, and only neighbours find its weights in the L2 cache. Knows nothing of weights.

Letters: E experts without the shared one
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.routes import Routes

NUM_WARPS = 4


def sort_tiles(routes: Routes) -> None:
    """Write the tiles behind the shared expert's anew: by expert, then from its first rows to its last."""
    num_experts = routes.num_experts - (routes.shared_tiles > 0)
    _sort_tiles[(1,)](
        routes.counts,
        routes.tiles,
        routes.shared_tiles,
        E=num_experts,
        BLOCK_E=triton.next_power_of_2(num_experts),
        TILE=routes.tile_rows,
        num_warps=NUM_WARPS,
    )


@triton.jit(do_not_specialize=["shared_tiles"])  # type: ignore[untyped-decorator,unused-ignore]
def _sort_tiles(  # type: ignore[no-untyped-def]
    counts_ptr,  # noqa: ANN001
    tiles_ptr,  # noqa: ANN001
    shared_tiles,  # noqa: ANN001
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    e = tl.arange(0, BLOCK_E)
    tiles = tl.cdiv(tl.load(counts_ptr + e, mask=e < E, other=0), TILE)
    at = tiles_ptr + shared_tiles + tl.cumsum(tiles, axis=0) - tiles
    for tile in range(tl.max(tiles, axis=0)):
        tl.store(at + tile, (tile << 16) | e, mask=tile < tiles)
