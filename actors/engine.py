"""Sequences in, token events out, one step at a time.

The attention actor without its sockets: scheduler, pages, forward pass, sampler. Knows nothing of who is
connected; an owner is an opaque mark that comes back with the events.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from actors.admission import Refusal
from actors.drafter import Drafter
from actors.messages import ANY_TERMS, FINISH_CANCELLED, FINISH_ERROR, FINISH_LENGTH, Terms, TokenEvent
from actors.pages import PagePool
from actors.scheduler import Scheduler, SchedulerLimits, Work
from actors.sequence import Sequence as LiveSequence
from actors.step import forward
from actors.verify import chunks_of, draws_of, tokens_that_hold
from model.batch import Batch, build_batch
from model.cache import PAGE_TOKENS, LatentCache
from model.decoder import Decoder
from model.sampler import Drawn, sample
from model.sampling import Sampling
from router.exchange import Exchange

logger = logging.getLogger(__name__)

OwnedEvents = dict[Hashable, list[TokenEvent]]


@dataclass(slots=True)
class EngineCounters:
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    finished: int = 0
    refused: int = 0
    drafted: list[int] = field(default_factory=list)  # by place: first draft of a step, second, ...
    accepted: list[int] = field(default_factory=list)


class Engine:
    """One attention actor's sequences. Not thread-safe: the step loop owns it."""

    def __init__(
        self,
        decoder: Decoder,
        exchange: Exchange,
        *,
        num_pages: int,
        context_tokens: int,
        limits: SchedulerLimits | None = None,
        draft_tokens: int = 0,
    ) -> None:
        config = decoder.config
        self._decoder = decoder
        self._exchange = exchange
        self._cache = LatentCache(config, num_pages, decoder.dtype)
        self._pool = PagePool(num_pages)
        # A sequence that could not fit alone would wait for ever: the pool bounds the context.
        self.context_tokens = min(context_tokens, self._pool.num_pages * PAGE_TOKENS)
        self._scheduler = Scheduler(self._pool, limits or SchedulerLimits())
        self._sequences: dict[tuple[Hashable, str], LiveSequence] = {}
        self._index_topk = config.indexer.topk if config.indexer else None
        self.counters = EngineCounters(drafted=[0] * draft_tokens, accepted=[0] * draft_tokens)
        self._drafter = None
        if draft_tokens and decoder.mtp is not None:
            self._drafter = Drafter(decoder, decoder.mtp, self._cache, exchange, draft_tokens)

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def free_pages(self) -> int:
        return self._pool.num_free

    @property
    def wait_s(self) -> float:
        """How long until all that waits has begun, estimated."""
        return self._scheduler.wait_s()

    def stats(self) -> dict[str, float]:
        """What an operator asks first."""
        exchange = self._exchange.counters
        return {
            "steps": self.counters.steps,
            "prefill_tokens": self.counters.prefill_tokens,
            "decode_tokens": self.counters.decode_tokens,
            "finished": self.counters.finished,
            "refused": self.counters.refused,
            "running": self.num_running,
            "waiting": self.num_waiting,
            "wait_s": self.wait_s,
            "free_pages": self.free_pages,
            "preemptions": self._scheduler.num_preemptions,
            "epoch": self._exchange.view.epoch,
            "retried_pairs": exchange.retried_pairs,
            "lost_actors": exchange.lost_actors,
            "parked_s": exchange.parked_s,
            **{f"drafted_{place}": count for place, count in enumerate(self.counters.drafted, 1)},
            **{f"accepted_{place}": count for place, count in enumerate(self.counters.accepted, 1)},
        }

    def submit(
        self,
        owner: Hashable,
        request_id: str,
        prompt_ids: Sequence[int],
        emitted_ids: Sequence[int],
        sampling: Sampling,
        terms: Terms = ANY_TERMS,
        now_s: float = 0.0,
    ) -> TokenEvent | None:
        """Queue a sequence; returns the terminal event at once if it cannot be served here."""
        config = self._decoder.config
        tokens = [*prompt_ids, *emitted_ids]
        problem = None
        if (owner, request_id) in self._sequences:
            problem = f"request id {request_id} is already running"
        elif not prompt_ids:
            problem = "the prompt is empty"
        elif min(tokens) < 0 or max(tokens) >= config.vocab_size:
            problem = f"a token id is outside the vocabulary of {config.vocab_size}"
        elif len(tokens) >= self.context_tokens:
            problem = f"{len(tokens)} tokens do not fit the context of {self.context_tokens}"
        else:
            problem = _objection(sampling, config.vocab_size)
        if problem:
            return TokenEvent(
                request_id=request_id,
                first=len(emitted_ids),
                token_ids=(),
                finish=FINISH_ERROR,
                error=problem,
            )
        if len(emitted_ids) >= sampling.max_tokens:
            return TokenEvent(
                request_id=request_id, first=len(emitted_ids), token_ids=(), finish=FINISH_LENGTH
            )
        refusal = self._scheduler.refusal(terms)
        if refusal is not None:
            return self._refused(request_id, len(emitted_ids), refusal)
        sequence = LiveSequence(
            request_id=request_id,
            owner=owner,
            tokens=tokens,
            num_prompt=len(prompt_ids),
            sampling=sampling,
            eos_ids=config.eos_token_ids,
            max_context=self.context_tokens,
            terms=terms,
        )
        self._sequences[owner, request_id] = sequence
        self._scheduler.add(sequence, now_s)
        return None

    def cancel(self, owner: Hashable, request_id: str) -> TokenEvent | None:
        """Forget a sequence; its terminal event, or None if it had already ended."""
        sequence = self._sequences.get((owner, request_id))
        if sequence is None:
            return None
        self._end(sequence)
        return TokenEvent(
            request_id=request_id, first=sequence.num_emitted, token_ids=(), finish=FINISH_CANCELLED
        )

    def disown(self, owner: Hashable) -> int:
        """Forget every sequence of an owner that is gone; returns how many."""
        gone = [sequence for (of, _), sequence in self._sequences.items() if of == owner]
        for sequence in gone:
            self._end(sequence)
        return len(gone)

    def expire(self, now_s: float) -> OwnedEvents:
        """Refuse those that have waited for longer than they may; the events of their owners."""
        events: OwnedEvents = defaultdict(list)
        for sequence, refusal in self._scheduler.overdue(now_s):
            self._end(sequence)
            events[sequence.owner].append(self._refused(sequence.request_id, sequence.num_emitted, refusal))
        return events

    def step(self, now_s: float = 0.0) -> OwnedEvents:
        """Compute one step; the events of every owner whose sequences advanced."""
        planned = self._scheduler.plan(now_s)
        if not planned:
            return {}
        self._clear(self._pool.unclean())
        chunks = [chunk for work in planned for chunk in chunks_of(work)]
        batch = build_batch(chunks, index_topk=self._index_topk)
        hidden_TD = forward(self._decoder, batch, self._cache, self._exchange)
        starts = [work.sequence.num_computed for work in planned]
        events = self._settle(planned, self._decoder.logits(hidden_TD, batch.logit_rows))
        self._follow(planned, starts, batch, hidden_TD)
        return events

    def _settle(self, planned: list[Work], logits: Tensor) -> OwnedEvents:
        """Count what is computed, draw tokens and verify drafts."""
        self._count(planned)
        drawn = iter(sample(logits, [draw for work in planned for draw in draws_of(work)]))
        events: OwnedEvents = defaultdict(list)
        for work in planned:
            sequence, is_last = work.sequence, work.reaches_end
            sequence.num_computed += work.num_tokens
            if is_last:
                mine = list(islice(drawn, 1 + work.num_drafts))
                if work.num_drafts and not all(token.finite for token in mine):
                    # A draft that overflows spoils every row that sees its slot: once more, without drafts.
                    self._scheduler.send_back(sequence)
                    sequence.pace.rest()
                    continue
                held = tokens_that_hold(mine, sequence.drafts)
                self._count_drafts(sequence, work.num_drafts, len(held) - 1)
                sequence.num_computed += len(held) - 1
                events[sequence.owner].append(self._advance(sequence, held))
            sequence.drafts.clear()
        return events

    def _follow(self, planned: list[Work], starts: list[int], batch: Batch, hidden_TD: Tensor) -> None:
        """Let the drafter see what holds of the step, of every sequence that goes on."""
        if self._drafter is None:
            return
        rows = iter(batch.chunk_rows)
        advanced = []
        for work, start in zip(planned, starts, strict=True):
            own = [row for part in islice(rows, 1 + work.num_drafts) for row in part]
            if work.sequence.pages:
                count = work.sequence.num_computed - start
                advanced.append((work.sequence, hidden_TD[own[:count]]))
        self._drafter.follow(advanced)

    def _clear(self, pages: list[int]) -> None:
        """Zero pages before use: a NaN of their last owner would pass through the mask of unused slots."""
        if not pages:
            return
        index = torch.tensor(pages)
        for slots in (*self._cache.latent_SC, *self._cache.index_SI):
            slots.view(self._cache.num_pages, PAGE_TOKENS, slots.shape[1]).index_fill_(0, index, 0.0)

    def _advance(self, sequence: LiveSequence, drawn: list[Drawn]) -> TokenEvent:
        first = sequence.num_emitted
        if not drawn[0].finite:
            self._end(sequence)
            error = "the model's logits are not finite"
            logger.error("%s: %s", sequence.request_id, error)
            return TokenEvent(
                request_id=sequence.request_id, first=first, token_ids=(), finish=FINISH_ERROR, error=error
            )
        finish = None
        said: list[Drawn] = []
        for token in drawn:
            finish = sequence.append(token.token_id)
            said.append(token)
            if finish is not None:
                self._end(sequence)
                break
        return TokenEvent(
            request_id=sequence.request_id,
            first=first,
            token_ids=tuple(token.token_id for token in said),
            logprobs=tuple(token.logprob for token in said if token.logprob is not None),
            top=tuple(token.top for token in said if token.top),
            finish=finish,
        )

    def _refused(self, request_id: str, num_emitted: int, refusal: Refusal) -> TokenEvent:
        self.counters.refused += 1
        return TokenEvent(
            request_id=request_id,
            first=num_emitted,
            token_ids=(),
            finish=refusal.finish,
            error=refusal.error,
            retry_after_s=refusal.retry_after_s,
        )

    def _end(self, sequence: LiveSequence) -> None:
        self._scheduler.remove(sequence)
        del self._sequences[sequence.owner, sequence.request_id]
        self.counters.finished += 1

    def _count(self, planned: list[Work]) -> None:
        self.counters.steps += 1
        for work in planned:
            if work.num_tokens == 1:
                self.counters.decode_tokens += 1
            else:
                self.counters.prefill_tokens += work.num_tokens

    def _count_drafts(self, sequence: LiveSequence, num_drafts: int, num_accepted: int) -> None:
        sequence.pace.note(num_drafts, num_accepted)
        for place in range(num_drafts):
            self.counters.drafted[place] += 1
            self.counters.accepted[place] += place < num_accepted
        self.counters.decode_tokens += num_accepted


def _objection(sampling: Sampling, vocab_size: int) -> str | None:
    """Why nobody can sample like this, or None.

    The door checks more; this keeps what slipped through from ending everyone's step.
    """
    temperature, repetition = sampling.temperature, sampling.repetition_penalty
    others = (sampling.top_p, sampling.min_p, sampling.presence_penalty, sampling.frequency_penalty)
    if not all(math.isfinite(number) for number in (temperature, repetition, *others)):
        return "a sampling parameter is not a finite number"
    if temperature < 0.0 or repetition <= 0.0:
        return f"temperature is {temperature}, repetition_penalty {repetition}: at least 0, above 0"
    if not -(2**63) <= sampling.seed < 2**63:
        return f"seed is {sampling.seed}: must fit 64 bits"
    if any(not 0 <= token_id < vocab_size for token_id in sampling.stop_token_ids):
        return f"a stop token id is outside the vocabulary of {vocab_size}"
    return None
