"""A scheduler with a model that says one word, and a clock that is told the time.

Every plan is checked against the promises. Knows nothing of tensors.
"""

from __future__ import annotations

from collections import Counter

from actors.messages import Terms
from actors.pages import PagePool, pages_for
from actors.prefix import PrefixCache
from actors.scheduler import Scheduler, SchedulerLimits, Work
from actors.sequence import Sequence
from model.cache import PAGE_TOKENS
from model.sampling import Sampling

TOKEN = 42


class Shop:
    """step_s, token_s: what a step takes, and each token in it. computed: tokens by tenant."""

    def __init__(
        self,
        num_pages: int,
        limits: SchedulerLimits,
        *,
        step_s: float = 0.01,
        token_s: float = 0.001,
        prefix_cache: bool = False,
    ) -> None:
        self.pool = PagePool(num_pages)
        self.limits = limits
        self.prefixes = PrefixCache(self.pool) if prefix_cache else None
        self.scheduler = Scheduler(self.pool, limits, prefixes=self.prefixes)
        self.max_context = self.pool.num_pages * PAGE_TOKENS
        self.live: list[Sequence] = []  # oldest first
        self.finished: dict[str, str] = {}
        self.computed: Counter[str] = Counter()
        self.num_added = 0
        self.now_s = 0.0
        self._step_s, self._token_s = step_s, token_s

    def add(self, num_prompt: int, max_tokens: int, terms: Terms | None = None) -> Sequence:
        self.num_added += 1
        sequence = Sequence(
            request_id=str(self.num_added),
            owner=None,
            tokens=[TOKEN] * min(num_prompt, self.max_context - 1),
            num_prompt=min(num_prompt, self.max_context - 1),
            sampling=Sampling(max_tokens=max_tokens),
            eos_ids=(),
            max_context=self.max_context,
            terms=terms or Terms(),
        )
        self.live.append(sequence)
        self.scheduler.add(sequence, self.now_s)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        self.live.remove(sequence)
        self.scheduler.remove(sequence)
        assert sequence.pages == []

    def step(self) -> list[Work]:
        decoding = [sequence for sequence in self.scheduler.running if sequence.is_decoding]
        planned = self.scheduler.plan(self.now_s)
        self._check_pages()
        self._check_plan(planned, decoding)
        ending = [work for work in planned if work.reaches_end]
        for work in planned:
            work.sequence.num_computed += work.num_tokens
            self.computed[work.sequence.terms.tenant] += work.num_tokens
            if self.prefixes:
                self.prefixes.publish(work.sequence, work.sequence.num_computed)
        for work in ending:
            reason = work.sequence.append(TOKEN)
            if reason is not None:
                self.cancel(work.sequence)
                self.finished[work.sequence.request_id] = reason
        self.now_s += self._step_s + self._token_s * sum(work.num_tokens for work in planned)
        return planned

    def run(self) -> None:
        """To the end, which must come, however often somebody is computed again for somebody else."""
        work = sum(
            len(s.tokens) // self.limits.chunk_tokens + 1 + min(s.sampling.max_tokens, self.max_context)
            for s in self.live
        )
        left = work * (1 + len(self.live))
        while self.scheduler.has_work:
            assert left > 0, "far more steps than the sequences need one after another"
            self.step()
            left -= 1
        assert self.pool.num_free == self.pool.num_pages
        assert not self.live

    def _check_pages(self) -> None:
        running, waiting = self.scheduler.running, self.scheduler.waiting
        assert sorted(map(id, running + waiting)) == sorted(map(id, self.live)), "nobody is lost"
        owned = [page for sequence in running for page in sequence.pages]
        own = [page for page in owned if page not in self.pool._names]  # those with a name are shared
        assert len(set(own)) == len(own)
        assert len(set(owned)) + self.pool.num_free == self.pool.num_pages
        assert set(self.scheduler.sent_back) <= set(waiting)
        assert len(running) <= self.limits.max_sequences

    def _check_plan(self, planned: list[Work], decoding: list[Sequence]) -> None:
        assert len({work.sequence for work in planned}) == len(planned)
        assert sum(work.num_tokens for work in planned) <= self.limits.max_step_tokens
        assert bool(planned) == bool(self.live)
        told = {work.sequence for work in planned}
        assert all(sequence in told for sequence in decoding if sequence.pages), "a token in every step"
        chunk = self.limits.chunk_tokens
        if any(work.sequence in decoding for work in planned):
            prefill = sum(work.num_tokens for work in planned if work.sequence not in decoding)
            assert prefill <= chunk, "one chunk beside those that decode"
        for work in planned:
            sequence, start = work.sequence, work.sequence.num_computed
            end = start + work.num_tokens
            assert sequence in self.scheduler.running
            assert work.num_tokens >= 1
            assert pages_for(end) <= len(sequence.pages)
            assert start // chunk == (end - 1) // chunk, "a chunk crosses a multiple of the chunk size"
            assert end % chunk == 0 or end == len(sequence.tokens), "a chunk is cut short of the multiple"
