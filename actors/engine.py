"""Sequences in, token events out, one step at a time.

The attention actor without its sockets: scheduler, pages, and a runner that computes and draws. Knows nothing
of who is connected; an owner is an opaque mark that comes back with the events.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice

from actors.admission import Refusal
from actors.counters import EngineCounters
from actors.lending import Lending
from actors.messages import (
    ANY_TERMS,
    FINISH_CANCELLED,
    FINISH_ERROR,
    FINISH_GRAMMAR,
    FINISH_LENGTH,
    Terms,
    TokenEvent,
    end_event,
    taken_event,
)
from actors.metrics import Sample
from actors.objection import objection
from actors.pages import PagePool
from actors.prefix import PrefixCache
from actors.samples import page_samples, step_samples
from actors.scheduler import Scheduler, SchedulerLimits, Work
from actors.scores import PromptScores
from actors.sequence import Sequence as LiveSequence
from actors.step_runner import StepRunner
from actors.suspects import Suspects
from actors.trace import Recorder, RecordingLaps
from actors.verify import tokens_that_hold
from model.cache import PAGE_TOKENS
from model.matcher import Matcher
from model.sampler import Drawn
from model.sampling import Sampling
from router.load import Counts
from router.view import ExpertActor

logger = logging.getLogger(__name__)

OwnedEvents = dict[Hashable, list[TokenEvent]]


class Engine:
    """One attention actor's sequences. Not thread-safe: the step loop owns it."""

    def __init__(
        self,
        runner: StepRunner,
        *,
        context_tokens: int,
        limits: SchedulerLimits | None = None,
        prefix_cache: bool = True,
    ) -> None:
        self._runner = runner
        self._pool = PagePool(runner.num_pages)
        # A sequence that could not fit alone would wait for ever: the pool bounds the context.
        self.context_tokens = min(context_tokens, self._pool.num_pages * PAGE_TOKENS)
        self._prefixes = PrefixCache(self._pool) if prefix_cache else None
        self._scheduler = Scheduler(self._pool, limits or SchedulerLimits(), prefixes=self._prefixes)
        self._sequences: dict[tuple[Hashable, str], LiveSequence] = {}
        self.lending: Lending | None = None
        if self._prefixes is not None and runner.portable is not None:
            self.lending = Lending(self._sequences, self._pool, self._prefixes, runner.portable)
        self._suspects = Suspects()
        self._fatal_seed: int | None = None
        self.num_waiting = 0
        self.wait_s = 0.0  # until all that waits has begun, estimated
        drafts = runner.draft_tokens
        self.counters = EngineCounters(drafted=[0] * drafts, accepted=[0] * drafts)
        self._laps = self.counters.laps

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._suspects)

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def free_pages(self) -> int:
        return self._pool.num_free

    @property
    def epoch(self) -> int:
        """Of the view that it computes with."""
        return self._runner.exchange.view.epoch

    @property
    def convicted(self) -> frozenset[ExpertActor]:
        return self._runner.exchange.convicted

    def stats(self) -> dict[str, float]:
        """What an operator asks first."""
        return {
            **self.counters.stats(),
            **self._runner.stats(),
            "running": self.num_running,
            "waiting": self.num_waiting,
            "wait_s": self.wait_s,
            "free_pages": self.free_pages,
            "pages": self._pool.num_pages,
            "cache_tokens": self._pool.num_pages * PAGE_TOKENS,
            "preemptions": self._scheduler.num_preemptions,
            **(self._prefixes.stats() if self._prefixes else {}),
        }

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        yield from step_samples(self.counters)
        yield from self._runner.samples()
        yield from page_samples(self._pool, self._prefixes)
        yield Sample("shoal_sequences", self.num_running, ("running",))
        yield Sample("shoal_sequences", self.num_waiting, ("waiting",))
        yield Sample("vllm:num_requests_waiting", self.num_waiting)
        yield Sample("shoal_queue_wait_seconds", self.wait_s)
        yield Sample("shoal_preemptions_total", self._scheduler.num_preemptions)

    def expert_pairs(self) -> Counts:
        """[L, E] pairs (token, expert) since birth, of every MoE layer; read from another thread."""
        return self._runner.exchange.load.pairs_LE.copy()

    def record(self, recorder: Recorder | None) -> None:
        """Note what happens when from the next step on, or no more; safe from any thread."""
        if recorder is None:
            self._laps.go_on()  # the recording counted into the same sums
            self.counters.laps = self._laps
        else:
            self.counters.laps = RecordingLaps(self._laps, recorder)
        self._runner.record(recorder)

    def poison(self, seed: int) -> None:
        """For fault tests: whoever computes a sequence of this seed dies of it. Safe from any thread."""
        self._fatal_seed = seed

    def submit(
        self,
        owner: Hashable,
        request_id: str,
        prompt_ids: Sequence[int],
        emitted_ids: Sequence[int],
        sampling: Sampling,
        terms: Terms = ANY_TERMS,
        now_s: float = 0.0,
        matcher: Matcher | None = None,
    ) -> TokenEvent | None:
        """Queue a sequence; returns the terminal event at once if it cannot be served here.

        matcher: of the sampling's grammar, after the emitted tokens.
        """
        assert bool(sampling.grammar) == (matcher is not None), "a grammar comes with its matcher"
        config, num_emitted = self._runner.config, len(emitted_ids)
        if (owner, request_id) in self._sequences:
            problem: str | None = f"request id {request_id} is already running"
        else:
            problem = objection(
                prompt_ids,
                emitted_ids,
                sampling,
                vocab_size=config.vocab_size,
                context_tokens=self.context_tokens,
            )
        if problem:
            return end_event(request_id, num_emitted, FINISH_ERROR, problem)
        if num_emitted >= sampling.max_tokens:
            return end_event(request_id, num_emitted, FINISH_LENGTH)
        refusal = self._scheduler.refusal(terms)
        if refusal is not None:
            return self._refused(request_id, num_emitted, refusal)
        sequence = LiveSequence(
            request_id=request_id,
            owner=owner,
            tokens=[*prompt_ids, *emitted_ids],
            num_prompt=len(prompt_ids),
            sampling=sampling,
            eos_ids=config.eos_token_ids,
            max_context=self.context_tokens,
            terms=terms,
            matcher=matcher,
            scores=_scores(prompt_ids, sampling) if not emitted_ids else None,
        )
        self._sequences[owner, request_id] = sequence
        if terms.is_suspect:
            self._suspects.add(sequence)
        else:
            self._scheduler.add(sequence, now_s)
        self._note_queue()
        return None

    def let_in(self, now_s: float) -> OwnedEvents:
        """The next suspect, if it is time; what its owner must be told before it is computed."""
        sequence = self._suspects.next()
        if sequence is None:
            return {}
        self._scheduler.add(sequence, now_s)
        return {sequence.owner: [taken_event(sequence.request_id, sequence.num_emitted)]}

    def cancel(self, owner: Hashable, request_id: str) -> TokenEvent | None:
        """Forget a sequence; its terminal event, or None if it had already ended."""
        sequence = self._sequences.get((owner, request_id))
        if sequence is None:
            return None
        self._end(sequence)
        self._note_queue()
        return end_event(request_id, sequence.num_emitted, FINISH_CANCELLED)

    def disown(self, owner: Hashable) -> int:
        """Forget every sequence of an owner that is gone; returns how many."""
        gone = [sequence for (of, _), sequence in self._sequences.items() if of == owner]
        for sequence in gone:
            self._end(sequence)
        self._note_queue()
        return len(gone)

    def depart(self, owner: Hashable, request_id: str, heir: str) -> TokenEvent | None:
        """Forget a sequence that goes on at `heir`; None if it has ended."""
        sequence = self._sequences.get((owner, request_id))
        if sequence is None:
            return None
        self._end(sequence)
        self._note_queue()
        return TokenEvent(
            request_id=request_id,
            first=sequence.num_emitted,
            token_ids=(),
            num_cached=sequence.num_cached,
            moved_to=heir,
        )

    def expire(self, now_s: float) -> OwnedEvents:
        """Refuse those that have waited for longer than they may; the events of their owners."""
        events: OwnedEvents = defaultdict(list)
        for sequence, refusal in self._scheduler.overdue(now_s):
            self._end(sequence)
            events[sequence.owner].append(self._refused(sequence.request_id, sequence.num_emitted, refusal))
        if events:
            self._note_queue()
        return events

    def hear_experts(self) -> None:
        """While there is nothing to compute: who is lost is known before the next step."""
        self._runner.exchange.hear()

    def step(self, now_s: float = 0.0) -> OwnedEvents:
        """Compute one step; the events of every owner whose sequences advanced."""
        planned = self._scheduler.plan(now_s)
        self._note_queue()
        if not planned:
            return {}
        if self._fatal_seed is not None:
            _die_of(self._fatal_seed, planned)
        laps = self.counters.laps
        laps.lap("plan")
        self._runner.clear(self._pool.unclean())
        experts = self._runner.exchange.counters
        waited_s = experts.waited_s
        self._runner.compute(planned)
        for work in planned:
            work.sequence.note_step(now_s, experts.waited_s - waited_s)
        self._score(planned)
        laps.lap("forward")
        starts = [work.sequence.num_computed for work in planned]
        events = self._settle(planned)
        laps.lap("sample")
        self._follow(planned, starts)
        laps.lap("draft")
        for sequence in [work.sequence for work in planned if work.sequence.pages]:
            self._publish(sequence)
            if sequence.finish is not None:
                self._end(sequence)
        self._note_queue()
        return events

    def _score(self, planned: list[Work]) -> None:
        """Logprobs of prompts, for those who ask."""
        if all(work.sequence.scores is None for work in planned):
            return
        for work, hidden_ND in zip(planned, self._runner.hidden(planned), strict=True):
            if (scores := work.sequence.scores) is not None:
                scores.add(work.sequence.num_computed, hidden_ND[: work.num_tokens], self._runner.logits)

    def _settle(self, planned: list[Work]) -> OwnedEvents:
        """Count what is computed, draw tokens and verify drafts."""
        self.counters.count_step(planned)
        drawn = iter(self._runner.draw(planned))
        events: OwnedEvents = defaultdict(list)
        for work in planned:
            sequence, is_last = work.sequence, work.reaches_end
            sequence.num_computed += work.num_tokens
            if is_last:
                mine = list(islice(drawn, 1 + work.num_drafts))
                if work.num_drafts and not all(token.finite for token in mine):
                    # A draft that overflows spoils every row that sees its slot: once more, without drafts.
                    self._withdraw(sequence)
                    self._scheduler.send_back(sequence)
                    sequence.pace.rest()
                    continue
                held = tokens_that_hold(mine, sequence.drafts)
                sequence.pace.note(work.num_drafts, len(held) - 1)
                self.counters.count_drafts(work.num_drafts, len(held) - 1)
                events[sequence.owner].append(self._advance(sequence, held))
            sequence.drafts.clear()
        return events

    def _follow(self, planned: list[Work], starts: list[int]) -> None:
        """Let the drafter see what holds of every sequence that goes on or is gone on from."""
        if not self._runner.draft_tokens:
            return
        hidden = self._runner.hidden(planned)
        self._runner.follow(
            [
                (work.sequence, own_ND[: work.sequence.num_computed - start])
                for work, start, own_ND in zip(planned, starts, hidden, strict=True)
                if work.sequence.pages and (work.sequence.finish is None or self._prefixes)
            ]
        )

    def _advance(self, sequence: LiveSequence, drawn: list[Drawn]) -> TokenEvent:
        first = sequence.num_emitted
        scores, sequence.scores = sequence.scores, None
        if not drawn[0].finite or (scores is not None and not scores.is_finite):
            self._withdraw(sequence)
            self._end(sequence)
            if sequence.matcher is not None and sequence.matcher.error:
                return end_event(sequence.request_id, first, FINISH_GRAMMAR, sequence.matcher.error)
            error = "the model's logits are not finite"
            logger.error("%s: %s", sequence.request_id, error)
            return end_event(sequence.request_id, first, FINISH_ERROR, error)
        said: list[Drawn] = []
        for token in drawn:
            said.append(token)
            if sequence.append(token.token_id) is not None:
                break
        sequence.num_computed = len(sequence.tokens) - 1
        return TokenEvent(
            request_id=sequence.request_id,
            first=first,
            token_ids=tuple(token.token_id for token in said),
            logprobs=tuple(token.logprob for token in said if token.logprob is not None),
            top=tuple(token.top for token in said if token.top),
            num_cached=sequence.num_cached if first == 0 else None,
            prompt_logprobs=() if scores is None else tuple(scores.logprobs),
            prompt_top=() if scores is None else tuple(scores.top),
            finish=sequence.finish,
            work=sequence.work if sequence.finish else None,
        )

    def _publish(self, sequence: LiveSequence) -> None:
        """Let others find its full pages, once every layer has written them for good."""
        if self._prefixes is not None:
            is_followed = self._runner.draft_tokens > 0
            self._prefixes.publish(sequence, sequence.num_followed if is_followed else sequence.num_computed)

    def _withdraw(self, sequence: LiveSequence) -> None:
        if self._prefixes is not None:
            self._prefixes.withdraw(sequence)

    def _refused(self, request_id: str, num_emitted: int, refusal: Refusal) -> TokenEvent:
        self.counters.refused += 1
        return end_event(request_id, num_emitted, refusal.finish, refusal.error, refusal.retry_after_s)

    def _note_queue(self) -> None:
        """For those who ask from other threads, where the queue itself may change while it is read."""
        self.num_waiting = len(self._scheduler.waiting) + len(self._suspects)
        self.wait_s = self._scheduler.wait_s()

    def _end(self, sequence: LiveSequence) -> None:
        self._suspects.discard(sequence)
        self._scheduler.remove(sequence)
        del self._sequences[sequence.owner, sequence.request_id]
        self.counters.finished += 1


def _die_of(seed: int, planned: list[Work]) -> None:
    """As a fault in native code, or a lack of memory, would have it."""
    if any(work.sequence.sampling.seed == seed for work in planned):
        os.kill(os.getpid(), signal.SIGKILL)


def _scores(prompt_ids: Sequence[int], sampling: Sampling) -> PromptScores | None:
    if not sampling.of_prompt:
        return None
    return PromptScores(prompt_ids=prompt_ids, num_top=sampling.logprobs or 0)
