"""The MTP layer at work: follows the main model, drafts ahead.

After each step it reads the hidden states of the positions that hold, so that its cache has all of a
sequence's past, and drafts the tokens that the next step verifies. A draft is drawn as the sampler would draw
the token itself, with the same noise, so that good drafts are accepted when sampling too. What it writes for
drafted positions is written again before anything reads it. Knows nothing of what is accepted.

Letters: N tokens, in the order of the chunks  D hidden
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from actors.sequence import Sequence as LiveSequence
from model.batch import Chunk
from model.cache import PAGE_TOKENS
from model.sampler import Draw, Drawn

FEW_TOKENS = 8

# One pass of the MTP layer: chunks of the tokens that follow, what the model (or the pass before) returned
# there, and a draw for each chunk that wants logits. Returns these chunks' hidden states and tokens.
Pass = Callable[[Sequence[Chunk], Tensor, Sequence[Draw]], tuple[Tensor, list[Drawn]]]


class Drafter:
    """Drafts up to draft_tokens for each sequence that decodes."""

    def __init__(self, compute: Pass, draft_tokens: int) -> None:
        self._compute = compute
        self._draft_tokens = draft_tokens

    def follow(self, advanced: Sequence[tuple[LiveSequence, Tensor]]) -> None:
        """Each sequence with the hidden states of its newly computed tokens, [tokens, D].

        Of one that has ended only full pages matter, for others to go on from.
        """
        due = []
        for sequence, hidden in advanced:
            sequence.unfollowed.append(hidden)
            if self._is_due(sequence):
                due.append(sequence)
        if not due:
            return
        hidden_ND = torch.cat([part for sequence in due for part in sequence.unfollowed])
        chunks = [chunk for sequence in due for chunk in _catch_up(sequence)]
        drafting = [sequence for sequence in due if sequence.is_decoding]
        for depth in range(1, self._draft_tokens + 1):
            hidden_ND = self._draft(chunks, hidden_ND, drafting)
            kept = [i for i, sequence in enumerate(drafting) if self._room(sequence) > depth]
            if not kept:
                return
            hidden_ND = hidden_ND[kept]
            drafting = [drafting[i] for i in kept]
            chunks = [
                Chunk(
                    token_ids=sequence.drafts[-1:],
                    start=sequence.num_computed + depth - 1,
                    pages=sequence.pages,
                    wants_logits=True,
                )
                for sequence in drafting
            ]

    def _draft(self, chunks: list[Chunk], hidden_ND: Tensor, drafting: list[LiveSequence]) -> Tensor:
        """One pass and one more draft each; the hidden states that it was drawn from, [drafting, D]."""
        draws = [_without_logprobs(sequence.draw(sequence.drafts)) for sequence in drafting]
        hidden_ND, drawn = self._compute(chunks, hidden_ND, draws)
        for sequence, token in zip(drafting, drawn, strict=True):
            sequence.drafts.append(token.token_id)
        return hidden_ND

    def _is_due(self, sequence: LiveSequence) -> bool:
        """Whether the layer is to read what it has not read of the sequence, now."""
        if sequence.finish is not None:
            return sequence.num_computed // PAGE_TOKENS > sequence.num_followed // PAGE_TOKENS
        if sequence.is_decoding:
            return not sequence.pace.is_resting and self._room(sequence) >= 1
        return True

    def _room(self, sequence: LiveSequence) -> int:
        """How many drafts the next step could use, and the cache has room to make."""
        in_pages = len(sequence.pages) * PAGE_TOKENS - sequence.num_computed + 1
        wanted = min(
            sequence.sampling.max_tokens - sequence.num_emitted, sequence.max_context - len(sequence.tokens)
        )
        return min(self._draft_tokens, wanted - 1, in_pages)


def _catch_up(sequence: LiveSequence) -> list[Chunk]:
    """The computed tokens that the MTP layer has not seen, each as the token that follows it."""
    start, end = sequence.num_followed, sequence.num_computed
    assert sum(map(len, sequence.unfollowed)) == end - start, "a hidden state for each token"
    sequence.unfollowed.clear()
    sequence.num_followed = end
    following, count = sequence.tokens[start + 1 : end + 1], end - start
    size = 1 if count <= FEW_TOKENS else count  # single tokens of many sequences share their products
    return [
        Chunk(
            token_ids=following[at : at + size],
            start=start + at,
            pages=sequence.pages,
            wants_logits=sequence.is_decoding and at + size == count,
        )
        for at in range(0, count, size)
    ]


def _without_logprobs(draw: Draw) -> Draw:
    if draw.sampling.logprobs is None:
        return draw
    return replace(draw, sampling=replace(draw.sampling, logprobs=None))
