"""The gate's choice: from scores to weights, experts and routes, one program a row.

model/gate.py is the definition: sigmoid, bias, the groups whose two best experts are best, the best experts
of those, ties to the lowest, experts ascending. Each row enters itself into the lists of its experts
(kernels/routes.py). Knows nothing of the product that made the scores.

Letters: R rows  E experts  S parts of the product  K experts per row
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.routes import Routes

# For any number of rows: the sum of a row's weights is added up in another order by another number of warps.
NUM_WARPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class GateShape:
    """What of a model's config the choice depends on."""

    num_experts: int
    per_row: int
    num_groups: int
    kept_groups: int
    scaling: float
    shared: bool  # the shared expert is number num_experts in the routes


def gate_topk(
    scores_SRE: Tensor,
    bias_E: Tensor,
    shape: GateShape,
    weights_RK: Tensor,
    experts_RK: Tensor,
    routes: Routes,
) -> None:
    """Fill weights_RK (fp32), experts_RK (int32) and the routes, whose counts must be zero.

    scores_SRE: fp32 parts of x @ weight.T, added in order. All sizes are powers of two.
    """
    parts, rows, experts = scores_SRE.shape
    if experts != shape.num_experts or routes.num_experts != experts + shape.shared:
        raise ValueError(
            f"{experts} scores, {shape.num_experts} experts and routes for {routes.num_experts}: the shared "
            "expert is one more in the routes"
        )
    if routes.capacity < rows or routes.pairs_per_row != shape.per_row + shape.shared:
        raise ValueError(
            f"routes hold {routes.capacity} rows of {routes.pairs_per_row} pairs: {rows} rows of "
            f"{shape.per_row + shape.shared} are coming"
        )
    _gate_topk[(rows,)](
        scores_SRE,
        bias_E,
        weights_RK,
        experts_RK,
        routes.counts,
        routes.tiles,
        routes.pairs_EC,
        rows,
        routes.capacity,
        routes.shared_tiles,
        shape.scaling,
        PARTS=parts,
        E=experts,
        K=shape.per_row,
        GROUPS=shape.num_groups,
        KEPT=shape.kept_groups,
        SHARED=shape.shared,
        TILE=routes.tile_rows,
        num_warps=NUM_WARPS,
    )


def gate_topk_reference(scores_RE: Tensor, bias_E: Tensor, shape: GateShape) -> tuple[Tensor, Tensor]:
    """(weights fp32, experts int64), a row at a time."""
    weights, chosen = [], []
    for score in torch.sigmoid(scores_RE.float()):
        choice = score + bias_E
        by_group = choice.view(shape.num_groups, -1)
        best_two = by_group.topk(2).values.sum(-1)
        kept = torch.sort(best_two, descending=True, stable=True).indices[: shape.kept_groups]
        mask = torch.full_like(by_group, float("-inf"))
        mask[kept] = 0.0
        order = torch.sort((by_group + mask).view(-1), descending=True, stable=True).indices
        experts = order[: shape.per_row].sort().values
        own = score[experts]
        weights.append(own / (own.sum() + 1e-20) * shape.scaling)
        chosen.append(experts)
    return torch.stack(weights), torch.stack(chosen)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _rank(values, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """How many stand before each: larger ones, and equal ones with a lower index."""
    index = tl.arange(0, SIZE)
    before = (values[None, :] > values[:, None]) | (
        (values[None, :] == values[:, None]) & (index[None, :] < index[:, None])
    )
    return tl.sum(before.to(tl.int32), axis=1)


@triton.jit(do_not_specialize=["rows", "capacity", "shared_tiles"])  # type: ignore[untyped-decorator,unused-ignore]
def _gate_topk(  # type: ignore[no-untyped-def]
    scores_ptr,  # noqa: ANN001
    bias_ptr,  # noqa: ANN001
    weights_ptr,  # noqa: ANN001
    experts_ptr,  # noqa: ANN001
    counts_ptr,  # noqa: ANN001
    tiles_ptr,  # noqa: ANN001
    pairs_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    capacity,  # noqa: ANN001
    shared_tiles,  # noqa: ANN001
    scaling,  # noqa: ANN001
    PARTS: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    KEPT: tl.constexpr,
    SHARED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    IN_GROUP: tl.constexpr = E // GROUPS
    ROUTED: tl.constexpr = E + (1 if SHARED else 0)
    PAIRS: tl.constexpr = K + (1 if SHARED else 0)
    row = tl.program_id(0)
    e = tl.arange(0, E)
    total = tl.zeros([E], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(scores_ptr + (part * rows + row).to(tl.int64) * E + e)
    score = 1.0 / (1.0 + tl.exp(-total))
    choice = score + tl.load(bias_ptr + e)
    choice = tl.where(choice == choice, choice, float("-inf"))  # NaN would rank first, every one of them
    if KEPT < GROUPS:
        by_group = tl.reshape(choice, [GROUPS, IN_GROUP])
        inner = tl.arange(0, IN_GROUP)[None, :]
        best = tl.max(by_group, axis=1, keep_dims=True)
        first = tl.min(tl.where(by_group == best, inner, IN_GROUP), axis=1, keep_dims=True)
        second = tl.max(tl.where(inner == first, float("-inf"), by_group), axis=1)
        kept = _rank(tl.max(by_group, axis=1) + second, GROUPS) < KEPT
        choice = tl.reshape(tl.where(kept[:, None], by_group, float("-inf")), [E])
    is_chosen = _rank(choice, E) < K
    place = tl.cumsum(is_chosen.to(tl.int32), axis=0) - 1
    weight = tl.where(is_chosen, score, 0.0)
    weight = weight / (tl.sum(weight, axis=0) + 1e-20) * scaling
    tl.store(weights_ptr + row * K + place, weight, mask=is_chosen)
    tl.store(experts_ptr + row * K + place, e, mask=is_chosen)
    # Relaxed: who reads this comes after the kernel, and fences would take longer than all the rest.
    rank = tl.atomic_add(counts_ptr + e, 1, mask=is_chosen, sem="relaxed")
    tl.store(pairs_ptr + e.to(tl.int64) * capacity + rank, row * PAIRS + place, mask=is_chosen)
    opens = is_chosen & (rank % TILE == 0)
    listed = tl.atomic_add(counts_ptr + ROUTED + e * 0, 1, mask=opens, sem="relaxed")
    tl.store(tiles_ptr + shared_tiles + listed, (rank // TILE) << 16 | e, mask=opens)
    if SHARED:
        tl.store(pairs_ptr + E * capacity + row, row * PAIRS + K)
        if row == 0:
            tl.store(counts_ptr + E, rows)
        if row % TILE == 0:
            tl.store(tiles_ptr + row // TILE, (row // TILE) << 16 | E)
