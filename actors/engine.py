"""Sequences in, token events out, one step at a time.

The attention actor without its sockets: who is here, from the submission to the end. What a step does with
them is actors/engine_step.py. Knows nothing of who is connected; an owner is an opaque mark that comes back
with the events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

from actors.admission import Refusal
from actors.counters import EngineCounters
from actors.engine_step import EngineStep
from actors.engine_step import OwnedEvents as OwnedEvents
from actors.lending import Lending
from actors.messages import (
    ANY_TERMS,
    FINISH_CANCELLED,
    FINISH_ERROR,
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
from actors.scheduler import Scheduler, SchedulerLimits
from actors.scores import PromptScores
from actors.sequence import Sequence as LiveSequence
from actors.step_runner import StepRunner
from actors.suspects import Suspects
from actors.trace import Recorder, RecordingLaps
from model.cache import PAGE_TOKENS
from model.matcher import Matcher
from model.sampling import Sampling
from router.load import Counts
from router.view import ExpertActor


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
        self.num_waiting = 0
        self.wait_s = 0.0  # until all that waits has begun, estimated
        drafts = runner.draft_tokens
        self.counters = EngineCounters(drafted=[0] * drafts, accepted=[0] * drafts)
        self._laps = self.counters.laps
        self._step = EngineStep(
            runner, self._pool, self._scheduler, self._prefixes, self.counters, end=self._end
        )

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._suspects)

    @property
    def num_sequences(self) -> int:
        """That live here, whatever they wait for."""
        return len(self._sequences)

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
            "again_tokens": self._scheduler.num_again_tokens,
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
        return self._runner.exchange.load.pairs().copy()

    def record(self, recorder: Recorder | None) -> None:
        """Note what happens when from the next step on, or no more; safe from any thread."""
        if recorder is None:
            self._laps.go_on()  # the recording counted into the same sums
            self.counters.laps = self._laps
        else:
            self.counters.laps = RecordingLaps(self._laps, recorder)
        self._runner.record(recorder)

    @property
    def fault_parts(self) -> dict[str, object]:
        """What actors/fault_points.py has points in."""
        return {"step": self._step, "transport": self._runner.exchange.transport}

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
        """Plan a step and take it; the events of every owner whose sequences advanced."""
        planned = self._scheduler.plan(now_s)
        self._note_queue()
        if not planned:
            return {}
        self.counters.laps.lap("plan")
        events = self._step.take(planned, now_s)
        self._note_queue()
        return events

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


def _scores(prompt_ids: Sequence[int], sampling: Sampling) -> PromptScores | None:
    if not sampling.of_prompt:
        return None
    return PromptScores(prompt_ids=prompt_ids, num_top=sampling.logprobs or 0)
