"""Sampled tokens without their logits leaving the device.

What model/sampler.py does for draws with a temperature and none of what needs the text so far; the others
are brought to the host and drawn there. Knows nothing of who asks.

Letters: R rows  V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.choose_token import choose_token
from model.sampler import LEAST_TEMPERATURE, Draw, Drawn, is_plain, sample, uniform

ALL = 2.0  # a share that nothing reaches


def sample_from_device(logits_BV: Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> list[Drawn]:
    """One token for each of these rows of finite logits."""
    here = [place for place, draw in enumerate(draws) if is_plain(draw) and draw.sampling.temperature > 0.0]
    there = sorted(set(range(len(draws))).difference(here))
    drawn: dict[int, Drawn] = {}
    for places, way in ((here, _sample_here), (there, _sample_there)):
        if places:
            told = way(logits_BV, [rows[place] for place in places], [draws[place] for place in places])
            drawn |= zip(places, told, strict=True)
    return [drawn[place] for place in range(len(draws))]


def _sample_there(logits_BV: Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> list[Drawn]:
    return sample(logits_BV[list(rows)].cpu(), draws)


def _sample_here(logits_BV: Tensor, rows: Sequence[int], draws: Sequence[Draw]) -> list[Drawn]:
    width, device = logits_BV.shape[1], logits_BV.device
    tokens_R, logprobs_R = choose_token(
        logits_BV,
        torch.tensor(rows, dtype=torch.int32, device=device),
        torch.tensor([_asked(draw, width) for draw in draws], dtype=torch.float64, device=device),
    )
    tokens = tokens_R.tolist()
    if all(draw.sampling.logprobs is None for draw in draws):
        return [Drawn(token) for token in tokens]
    return [
        Drawn(token, None if draw.sampling.logprobs is None else logprob)
        for token, logprob, draw in zip(tokens, logprobs_R.tolist(), draws, strict=True)
    ]


def _asked(draw: Draw, width: int) -> tuple[float, ...]:
    """As choose_token takes it."""
    sampling = draw.sampling
    return (
        max(sampling.temperature, LEAST_TEMPERATURE),
        sampling.top_k if sampling.top_k > 0 else width,
        sampling.top_p if sampling.top_p < 1.0 else ALL,
        sampling.min_p,
        uniform(sampling.seed, draw.position),
    )
