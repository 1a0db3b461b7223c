"""Logprobs of a prompt's own tokens.

Collected chunk by chunk while the prompt is computed, only for sequences that ask: each from the row that
decoding would have drawn the token from, so the bits are those of decoding. Knows nothing of sequences.

Letters: N tokens computed  D hidden  R rows  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.sampler import logprobs_of

ROWS_AT_ONCE = 64  # of logits: what they take of memory does not grow with the chunk

Logits = Callable[[Tensor, Tensor], Tensor]  # hidden [N, D], which rows [R] -> fp32 [R, V]


@dataclass(slots=True, kw_only=True)
class PromptScores:
    """Entry i is of prompt_ids[i + 1]. num_top: how many of the likeliest are noted beside each.

    is_finite: whether all the logits behind them are.
    """

    prompt_ids: Sequence[int]
    num_top: int
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    is_finite: bool = True

    def add(self, start: int, hidden_ND: Tensor, logits: Logits) -> None:
        """Note what the tokens from position `start` on say of those after them; what is known is not
        computed again.
        """
        end = min(start + len(hidden_ND), len(self.prompt_ids) - 1)
        for first in range(max(start, len(self.logprobs)), end, ROWS_AT_ONCE):
            places = range(first, min(end, first + ROWS_AT_ONCE))
            logits_RV = logits(hidden_ND, torch.tensor(places) - start)
            self.is_finite &= bool(torch.isfinite(logits_RV).all())
            for place, logits_V in zip(places, logits_RV, strict=True):
                logprob, top = logprobs_of(logits_V, self.prompt_ids[place + 1], self.num_top)
                self.logprobs.append(logprob)
                if self.num_top:
                    self.top.append(top)
