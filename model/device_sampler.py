"""Sampled tokens without their logits leaving the device.

What model/sampler.py does for draws with a temperature and none of what needs the text so far; the others
are brought to the host and drawn there. Knows nothing of who asks.

Letters: R rows  V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.choose_sorted import choose_sorted
from kernels.greedy import greedy
from model.sampler import LEAST_TEMPERATURE, Draw, Drawn, is_plain, sample, uniform

ALL = 2.0  # a share that nothing reaches


def sample_from_device(logits_BV: Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> list[Drawn]:
    """One token for each of these rows of finite logits."""
    here = [place for place, draw in enumerate(draws) if is_plain(draw) and draw.sampling.temperature > 0.0]
    there = [place for place in range(len(draws)) if place not in set(here)]
    drawn: dict[int, Drawn] = {}
    for places, way in ((here, _sample_here), (there, sample)):
        if places:
            logits_RV = logits_BV[[rows[place] for place in places]]
            own = [draws[place] for place in places]
            drawn |= zip(places, way(logits_RV if way is _sample_here else logits_RV.cpu(), own), strict=True)
    return [drawn[place] for place in range(len(draws))]


def _sample_here(logits_RV: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    width, device = logits_RV.shape[1], logits_RV.device
    told = [draw.sampling for draw in draws]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    temperatures_R1 = column([max(one.temperature, LEAST_TEMPERATURE) for one in told]).float()[:, None]
    below_RV = logits_RV - logits_RV.amax(-1, keepdim=True)
    scaled_RV = below_RV / temperatures_R1
    sorted_RV, ids_RV = torch.sort(scaled_RV, descending=True, stable=True)
    counts = [one.top_k if one.top_k > 0 else width for one in told]
    places_R = choose_sorted(
        sorted_RV,
        torch.tensor(counts, dtype=torch.int32, device=device),
        column([one.top_p if one.top_p < 1.0 else ALL for one in told]),
        column([one.min_p for one in told]),
        column([uniform(draw.sampling.seed, draw.position) for draw in draws]),
    )
    tokens_R = ids_RV.gather(1, places_R.long()[:, None])[:, 0]
    tokens = tokens_R.tolist()
    if all(one.logprobs is None for one in told):
        return [Drawn(token) for token in tokens]
    unused_R, of_best_R = torch.empty_like(places_R), logits_RV.new_empty(len(draws))
    greedy(logits_RV, unused_R, of_best_R, torch.empty_like(unused_R))
    logprobs = (below_RV.gather(1, tokens_R[:, None])[:, 0] + of_best_R).tolist()
    return [
        Drawn(token, None if one.logprobs is None else logprob)
        for token, logprob, one in zip(tokens, logprobs, told, strict=True)
    ]
