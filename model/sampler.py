"""From logits to the next token.

Noise is a hash of (seed, position), never generator state, so that a sequence resumed elsewhere draws the
same tokens. Greedy ties go to the lowest id. Knows nothing of sequences' text.

Letters: B rows  V vocabulary
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.sampling import Sampling

MANY, FEW = 16384, 1024  # of so many tokens a cut is looked for among few before all are sorted
LEAST_TEMPERATURE = 2.0**-100  # still a normal fp32 number; below it division would give 0 / 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """What the sampler must know of one sequence. position: how many tokens come before the one to draw.

    prompt_ids and emitted_ids matter, and need be given, only if the sampling is_penalised. allowed_V: the
    tokens that may come, bool; None: any.
    """

    sampling: Sampling
    position: int
    prompt_ids: Sequence[int]
    emitted_ids: Sequence[int]
    forbidden_ids: tuple[int, ...] = ()
    allowed_V: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """The token.

    Logprobs of the unmodified distribution when wanted; `finite` is false if the logits were not, or no token
    is allowed.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finite: bool = True


def sample(logits_BV: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """One token per row; logits_BV: fp32."""
    finite = torch.isfinite(logits_BV).all(-1).tolist()
    greedy = logits_BV.argmax(-1).tolist()
    masked = [row for row, draw in enumerate(draws) if draw.allowed_V is not None]
    if masked:
        allowed_RV = torch.stack([mask_V for draw in draws if (mask_V := draw.allowed_V) is not None])
        best_R = logits_BV[masked].masked_fill_(~allowed_RV, float("-inf")).argmax(-1).tolist()
        for row, best, is_any in zip(masked, best_R, allowed_RV.any(-1).tolist(), strict=True):
            greedy[row] = best
            finite[row] &= is_any
    return [
        _sample_row(logits_BV[row], draw, greedy[row]) if finite[row] else Drawn(0, finite=False)
        for row, draw in enumerate(draws)
    ]


def takes_the_likeliest(draw: Draw) -> bool:
    """Whether the draw is the first of the largest logits, told with no more than its own log probability."""
    return draw.sampling.temperature == 0.0 and is_plain(draw)


def is_plain(draw: Draw) -> bool:
    """Whether neither the text so far nor a list of tokens matters, nor others' log probabilities."""
    return not (_is_adjusted(draw) or draw.allowed_V is not None or draw.sampling.logprobs)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on (seed, position) alone."""
    digest = hashlib.blake2b(struct.pack("<qq", seed, position), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _sample_row(logits_V: Tensor, draw: Draw, greedy: int) -> Drawn:
    sampling = draw.sampling
    if sampling.temperature == 0.0 and not _is_adjusted(draw):
        token_id = greedy
    else:
        token_id = _pick_allowed(_penalise(logits_V, draw), draw)
    if sampling.logprobs is None:
        return Drawn(token_id)
    return Drawn(token_id, *logprobs_of(logits_V, token_id, sampling.logprobs))


def logprobs_of(logits_V: Tensor, token_id: int, num_top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The token's, and those of the likeliest, of the unmodified distribution."""
    logprobs_V = torch.log_softmax(logits_V, -1)
    return float(logprobs_V[token_id]), _top(logprobs_V, num_top)


def _pick_allowed(adjusted_V: Tensor, draw: Draw) -> int:
    """As if there were no other tokens than those allowed."""
    if draw.allowed_V is None:
        return _pick(adjusted_V, draw)
    ids = draw.allowed_V.nonzero().squeeze(-1)
    return int(ids[_pick(adjusted_V[ids], draw)])


def _pick(adjusted_V: Tensor, draw: Draw) -> int:
    sampling = draw.sampling
    if sampling.temperature == 0.0:
        return int(adjusted_V.argmax())
    # The largest becomes 0 first: a tiny temperature may then send the rest to -inf, never to +inf.
    scaled_V = (adjusted_V - adjusted_V.max()) / max(sampling.temperature, LEAST_TEMPERATURE)
    return _choose(scaled_V, sampling, uniform(sampling.seed, draw.position))


def _is_adjusted(draw: Draw) -> bool:
    """Whether logits are not taken as they are; `greedy` has seen what is allowed."""
    return bool(draw.sampling.is_penalised or draw.sampling.logit_bias or draw.forbidden_ids)


def _penalise(logits_V: Tensor, draw: Draw) -> Tensor:
    """Penalties as OpenAI (presence, frequency: emitted tokens) and HF (repetition: prompt too) define them.

    Then the bias, then what is forbidden, whatever its bias, unless nothing else is allowed.
    """
    sampling = draw.sampling
    adjusted_V = logits_V.clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*draw.prompt_ids, *draw.emitted_ids}), dtype=torch.int64)
        values = adjusted_V[seen]
        factor = sampling.repetition_penalty
        adjusted_V[seen] = torch.where(values > 0, values / factor, values * factor)
    if draw.emitted_ids and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(draw.emitted_ids)
        emitted = torch.tensor(list(counts))
        times = torch.tensor(list(counts.values()), dtype=torch.float32)
        adjusted_V[emitted] -= sampling.frequency_penalty * times + sampling.presence_penalty
    if sampling.logit_bias:
        ids, bias = zip(*sampling.logit_bias, strict=True)
        adjusted_V[list(ids)] += torch.tensor(bias, dtype=torch.float32)
    forbidden = list(draw.forbidden_ids)
    if forbidden and (draw.allowed_V is None or draw.allowed_V.sum() > draw.allowed_V[forbidden].sum()):
        adjusted_V[forbidden] = float("-inf")
    return adjusted_V


def _choose(logits_V: Tensor, sampling: Sampling, noise: float) -> int:
    """Inverse of the cumulative distribution, in the order of ids, over what top_k, top_p and min_p leave."""
    ids_V = _left(logits_V, sampling)
    cumulative = torch.softmax(logits_V[ids_V].double(), -1).cumsum(-1)
    place = int(torch.searchsorted(cumulative, noise * cumulative[-1], right=True))
    return int(ids_V[min(place, len(ids_V) - 1)])


def _left(logits_V: Tensor, sampling: Sampling) -> Tensor:
    """Ids, ascending: of the likeliest top_k the likeliest that have top_p, of those the ones above min_p."""
    width = len(logits_V)
    count = min(sampling.top_k or width, width)
    if count == width and sampling.top_p >= 1.0 and sampling.min_p <= 0.0:
        return torch.arange(width)
    for size in (FEW, width) if MANY <= width == count else (count,):
        sorted_N, ids_N = _likeliest(logits_V, min(size, count))
        probs_N = torch.exp(sorted_N - torch.logsumexp(logits_V if count == width else sorted_N, -1))
        keep = len(probs_N)
        if sampling.top_p < 1.0:
            before_N = probs_N.cumsum(-1) - probs_N
            keep = max(1, int((before_N < sampling.top_p).sum()))
        if sampling.min_p > 0.0:
            keep = min(keep, max(1, int((probs_N >= sampling.min_p * probs_N[0]).sum())))
        if keep < len(ids_N):
            break  # those that were not looked at are less likely than one that is cut
    return ids_N[:keep].sort().values


def _likeliest(logits_V: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(logits, ids) of so many, the likeliest first, of equals the lowest id."""
    if count == len(logits_V):
        sorted_V, ids_V = torch.sort(logits_V, descending=True, stable=True)
        return sorted_V, ids_V
    ids_N = (logits_V >= torch.topk(logits_V, count).values[-1]).nonzero().squeeze(-1)
    sorted_N, order_N = torch.sort(logits_V[ids_N], descending=True, stable=True)
    return sorted_N[:count], ids_N[order_N[:count]]


def _top(logprobs_V: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    if count == 0:
        return ()
    values, ids = torch.sort(logprobs_V, descending=True, stable=True)
    return tuple(zip(ids[:count].tolist(), values[:count].tolist(), strict=True))
