"""The list of tiles of kernels/routes.py, read inside Triton kernels.

Knows nothing of what is done with a tile's rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def listed_tile(  # type: ignore[no-untyped-def]  # noqa: ANN201
    tiles_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    pairs_ptr,  # noqa: ANN001
    place,  # noqa: ANN001
    capacity,  # noqa: ANN001
    BLOCK_R: tl.constexpr,
):
    """(expert, its pairs int32 [BLOCK_R], which of them are there) of the entry at `place`.

    capacity: int32, room of an expert's list of pairs. BLOCK_R: rows of a tile, as the routes were made with.
    Entries are tile number << routes.TILE_SHIFT | expert; pairs that are not there are 0.
    """
    entry = tl.load(tiles_ptr + place)
    expert = entry & 0xFFFF
    r = (entry >> 16) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = r < tl.load(counts_ptr + expert)
    pair = tl.load(pairs_ptr + expert * capacity + r, mask=inside, other=0)
    return expert, pair, inside
