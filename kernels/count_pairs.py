"""Rows of each expert, counted on the device.

Those with a token: one launch for all layers of a step, after the gates (kernels/gate_topk.py), adds them to
what was counted before. Whoever wants the sums copies them, no step waits. Knows nothing of weights, or of
who wants to know.

Letters: L MoE layers  R rows  K experts per row  E experts
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ROWS = 64
NUM_WARPS = 4


def count_pairs(experts_LRK: Tensor, slots_R: Tensor, pairs_LE: Tensor) -> None:
    """Add to pairs_LE (int64). slots_R: int32, -1 of rows without a token.

    experts_LRK: int32, each layer dense. K is a power of two. Raises ValueError for other shapes,
    dtypes, strides.
    """
    (layers, rows, per_row), counted = experts_LRK.shape, pairs_LE.shape
    if counted[0] != layers or slots_R.shape != (rows,):
        raise ValueError(
            f"experts of {layers} layers and {rows} rows: pairs are of {counted[0]} layers and slots of "
            f"{list(slots_R.shape)} rows"
        )
    for name, tensor, dtype in (
        ("experts", experts_LRK, torch.int32),
        ("slots", slots_R, torch.int32),
        ("pairs", pairs_LE, torch.int64),
    ):
        if tensor.dtype != dtype or tensor.device != pairs_LE.device:
            raise ValueError(
                f"{name} are {tensor.dtype} on {tensor.device}: expected {dtype} on {pairs_LE.device}"
            )
    if experts_LRK.stride()[1:] != (per_row, 1) or not pairs_LE.is_contiguous():
        raise ValueError(f"strides {experts_LRK.stride()} and {pairs_LE.stride()}: a layer must be dense")
    _count_pairs[(triton.cdiv(rows, BLOCK_ROWS), layers)](
        experts_LRK,
        slots_R,
        pairs_LE,
        rows,
        experts_LRK.stride(0),
        counted[1],
        K=per_row,
        BLOCK=BLOCK_ROWS,
        num_warps=NUM_WARPS,
    )


def count_pairs_reference(experts_LRK: Tensor, slots_R: Tensor, num_experts: int) -> Tensor:
    """int64 [L, E] of these rows alone."""
    live_LRK = experts_LRK[:, slots_R >= 0].long()
    return torch.stack([live_RK.flatten().bincount(minlength=num_experts) for live_RK in live_LRK])


# Slots may begin anywhere, and every number of rows comes: nothing may be compiled anew for them.
@triton.jit(do_not_specialize=["slots_ptr", "rows", "layer_stride"])  # type: ignore[untyped-decorator,unused-ignore]
def _count_pairs(
    experts_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    rows: tl.int32,
    layer_stride: tl.int32,
    num_experts: tl.int32,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    layer = tl.program_id(1).to(tl.int64)
    is_live = tl.load(slots_ptr + row, mask=row < rows, other=-1) >= 0
    k = tl.arange(0, K)[None, :]
    place = row[:, None] * K + k
    mask = is_live[:, None] & (k >= 0)
    expert = tl.load(experts_ptr + layer * layer_stride + place, mask=mask, other=0)
    one = tl.full([BLOCK, K], 1, tl.int64)
    # Relaxed: whoever reads the sums comes later, and a sum knows no order.
    tl.atomic_add(pairs_ptr + layer * num_experts + expert, one, mask=mask, sem="relaxed")
