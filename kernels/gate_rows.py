"""The choice of a gate: the best groups, their best experts, the weights.

One loop over rows; what it computes is written down in model/gate.py. Knows nothing of the logits' origin.

Letters: T rows  E experts  K experts per token
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.compiled import Floats, compiled, exponential, floats, indices, inlined

Marks = NDArray[np.bool_]

_LEAST, _ONE = np.float32(-np.inf), np.float32(1.0)


def choose(
    logits_TE: Tensor,
    bias_E: Tensor,
    *,
    num_groups: int,
    num_kept: int,
    num_chosen: int,
    normed: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(weights_TK, experts_TK) of contiguous fp32 logits; ties to the lowest, NaN is the largest."""
    num_rows, num_experts = logits_TE.shape
    weights_TK = logits_TE.new_empty(num_rows, num_chosen)
    experts_TK = torch.empty(num_rows, num_chosen, dtype=torch.int64)
    _choose(
        logits_TE.data_ptr(),
        bias_E.data_ptr(),
        num_rows,
        num_experts,
        num_groups,
        num_kept,
        num_chosen,
        normed,
        scale,
        weights_TK.data_ptr(),
        experts_TK.data_ptr(),
    )
    return weights_TK, experts_TK


@inlined
def _place_of_largest(values: Floats, start: int, end: int, taken: Marks) -> int:
    """The first of the largest that are not taken; -1 where all are."""
    best = -1
    for i in range(start, end):
        if taken[i]:
            continue
        if best < 0 or values[i] > values[best] or (np.isnan(values[i]) and not np.isnan(values[best])):
            best = i
    return best


@inlined
def _drop_groups(choice: Floats, groups: Floats, num_kept: int, taken: Marks, left: Marks) -> None:
    """-inf for every expert outside the groups with the best two; taken, left: room."""
    size = len(choice) // len(groups)
    taken[:] = False
    for g in range(len(groups)):
        first = _place_of_largest(choice, g * size, (g + 1) * size, taken)
        taken[first] = True
        groups[g] = choice[first] + choice[_place_of_largest(choice, g * size, (g + 1) * size, taken)]
        left[g] = False
    for _ in range(num_kept):
        left[_place_of_largest(groups, 0, len(groups), left)] = True
    for g in range(len(groups)):
        if not left[g]:
            choice[g * size : (g + 1) * size] = _LEAST


@compiled("void(int64, int64, int64, int64, int64, int64, int64, boolean, float64, int64, int64)")
def _choose(
    logits_at: int,
    bias_at: int,
    num_rows: int,
    num_experts: int,
    num_groups: int,
    num_kept: int,
    num_chosen: int,
    normed: bool,
    scale: float,
    weights_at: int,
    experts_at: int,
) -> None:
    bias, choice = floats(bias_at, num_experts), np.empty(num_experts, np.float32)
    scores = np.empty(num_experts, np.float32)
    groups, kept = np.empty(num_groups, np.float32), np.empty(num_groups, np.bool_)
    taken = np.empty(num_experts, np.bool_)
    for t in range(num_rows):
        logits = floats(logits_at + 4 * t * num_experts, num_experts)
        weights = floats(weights_at + 4 * t * num_chosen, num_chosen)
        experts = indices(experts_at + 8 * t * num_chosen, num_chosen)
        for e in range(num_experts):
            scores[e] = _ONE / (_ONE + exponential(-logits[e]))
            choice[e] = scores[e] + bias[e]
        if num_kept < num_groups:
            _drop_groups(choice, groups, num_kept, taken, kept)
        taken[:] = False
        for _ in range(num_chosen):
            taken[_place_of_largest(choice, 0, num_experts, taken)] = True
        place, total = 0, np.float32(0.0)
        for e in range(num_experts):
            if taken[e]:
                experts[place], weights[place] = e, scores[e]
                total += scores[e]
                place += 1
        factor = np.float32(scale)
        for k in range(num_chosen):
            share = weights[k] / (total + np.float32(1e-20)) if normed else weights[k]
            weights[k] = share * factor
