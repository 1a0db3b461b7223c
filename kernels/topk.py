"""The k largest of a row, ties to the lowest position.

`torch.topk` leaves ties to the kernel, and the indexer's ReLU makes exact ties common; a tie broken
differently in prefill and decode would change the text. Knows nothing of what is being chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHORT_ROW = 64  # up to this one stable sort is quicker than finding a threshold
FEW = 8  # in rows of FEW * k and more, k are quicker found by sorting them than by their threshold


def topk_lowest(scores_RN: Tensor, k: int) -> Tensor:
    """Positions of the k largest of each row, ascending; among equals the lowest positions win.

    scores_RN: floating; NaN counts as the largest, so that it is not overlooked. Returns int64 [R, k].
    """
    num_columns = scores_RN.shape[1]
    if num_columns <= SHORT_ROW:
        return topk_lowest_reference(scores_RN, k)
    if k * FEW <= num_columns:
        values, places = torch.topk(scores_RN, k + 1)
        cut = values[:, k - 1 :].tolist()
        if all(kth > following for kth, following in cut):  # else k cuts through a tie, or through NaN
            return places[:, :k].sort(-1).values
    threshold_R1 = _threshold(scores_RN, k)
    chosen_RN = scores_RN >= threshold_R1
    if bool((chosen_RN.sum(-1) != k).any()):  # ties at the threshold, or a row with NaN: it chose nothing
        scores_RN = scores_RN.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        threshold_R1 = _threshold(scores_RN, k)
        chosen_RN = scores_RN >= threshold_R1
        above_RN = scores_RN > threshold_R1
        ties_RN = chosen_RN ^ above_RN
        room_R1 = k - above_RN.sum(-1, keepdim=True)
        chosen_RN = above_RN | (ties_RN & (ties_RN.cumsum(-1) <= room_R1))
    return chosen_RN.nonzero()[:, 1].view(-1, k)


def _threshold(scores_RN: Tensor, k: int) -> Tensor:
    return torch.topk(scores_RN, k, dim=-1, sorted=False).values.amin(-1, keepdim=True)


def ranking(scores_RN: Tensor) -> Tensor:
    """Positions of each row from the largest to the smallest, equals in order; int64 [R, N]."""
    return torch.sort(scores_RN, dim=-1, descending=True, stable=True).indices


def topk_lowest_reference(scores_RN: Tensor, k: int) -> Tensor:
    """The same by one stable sort."""
    return ranking(scores_RN)[:, :k].sort(-1).values
