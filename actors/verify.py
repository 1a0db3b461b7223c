"""Drafts in a step: computed beside the last token, then held or not.

With the same noise at a position the sampler draws the same token from the same logits, so a draft holds if
it is that token: exact for greedy and for sampled text (docs/decisions/006-speculation.md). Knows nothing of
where drafts come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.scheduler import Work
from model.batch import Chunk
from model.sampler import Draw, Drawn


def chunks_of(work: Work) -> list[Chunk]:
    """The work's tokens; each draft is a decoded token of its own, so that it meets the shapes it would."""
    sequence, start = work.sequence, work.sequence.num_computed
    tokens = Chunk(
        token_ids=sequence.tokens[start : start + work.num_tokens],
        start=start,
        pages=sequence.pages,
        wants_logits=work.reaches_end,
    )
    drafts = [
        Chunk(token_ids=[draft], start=place, pages=sequence.pages, wants_logits=True)
        for place, draft in enumerate(sequence.drafts[: work.num_drafts], start + work.num_tokens)
    ]
    return [tokens, *drafts]


def draws_of(work: Work) -> list[Draw]:
    """For the sampler, in the order of the chunks' logits: the next token, and the one after each draft."""
    if not work.reaches_end:
        return []
    drafts = work.sequence.drafts[: work.num_drafts]
    return [work.sequence.draw(drafts[:place]) for place in range(work.num_drafts + 1)]


def tokens_that_hold(drawn: Sequence[Drawn], drafts: Sequence[int]) -> list[Drawn]:
    """What would have been drawn one by one: up to the first token that is not what was drafted."""
    held = list(drawn[:1])
    for draft, following in zip(drafts, drawn[1:], strict=False):
        if held[-1].token_id != draft:
            break
        held.append(following)
    return held
