"""One step of an engine: compute, draw, tell.

The order in which a StepRunner is asked, and what drawn tokens mean for their sequences: which drafts hold,
which pages are final, who has ended. Knows nothing of who waits, nor of who is in the next step.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable
from itertools import islice

from actors.counters import EngineCounters
from actors.messages import FINISH_ERROR, FINISH_GRAMMAR, TokenEvent, end_event
from actors.pages import PagePool
from actors.prefix import PrefixCache
from actors.scheduler import Scheduler, Work
from actors.sequence import Sequence as LiveSequence
from actors.step_runner import StepRunner
from actors.verify import tokens_that_hold
from model.sampler import Drawn

logger = logging.getLogger(__name__)

OwnedEvents = dict[Hashable, list[TokenEvent]]


class EngineStep:
    """Takes the steps that are planned. end: forgets a sequence and frees its pages."""

    def __init__(
        self,
        runner: StepRunner,
        pool: PagePool,
        scheduler: Scheduler,
        prefixes: PrefixCache | None,
        counters: EngineCounters,
        end: Callable[[LiveSequence], None],
    ) -> None:
        self._runner, self._pool = runner, pool
        self._scheduler, self._prefixes = scheduler, prefixes
        self._counters, self._end = counters, end

    def take(self, planned: list[Work], now_s: float) -> OwnedEvents:
        """The events of every owner whose sequences advanced."""
        laps, starts = self._counters.laps, [work.sequence.num_computed for work in planned]
        self._compute(planned, now_s)
        self._score(planned)
        laps.lap("forward")
        events = self._settle(planned)
        laps.lap("sample")
        self._follow(planned, starts)
        laps.lap("draft")
        self._close(planned)
        return events

    def _compute(self, planned: list[Work], now_s: float) -> None:
        self._runner.clear(self._pool.unclean())
        experts = self._runner.exchange.counters
        waited_s = experts.waited_s
        self._runner.compute(planned)
        for work in planned:
            work.sequence.note_step(now_s, experts.waited_s - waited_s)

    def _score(self, planned: list[Work]) -> None:
        """Logprobs of prompts, for those who ask."""
        if all(work.sequence.scores is None for work in planned):
            return
        for work, hidden_ND in zip(planned, self._runner.hidden(planned), strict=True):
            if (scores := work.sequence.scores) is not None:
                scores.add(work.sequence.num_computed, hidden_ND[: work.num_tokens], self._runner.logits)

    def _settle(self, planned: list[Work]) -> OwnedEvents:
        """Count what is computed, draw tokens and verify drafts."""
        self._counters.count_step(planned)
        drawn = iter(self._runner.draw(planned))
        events: OwnedEvents = defaultdict(list)
        for work in planned:
            sequence, is_last = work.sequence, work.reaches_end
            sequence.num_computed += work.num_tokens
            if is_last:
                own = list(islice(drawn, 1 + work.num_drafts))
                if work.num_drafts and not all(token.finite for token in own):
                    self._again_without_drafts(sequence)
                    continue
                events[sequence.owner].append(self._advance(sequence, self._held(work, own)))
            sequence.drafts.clear()
        return events

    def _again_without_drafts(self, sequence: LiveSequence) -> None:
        """A draft that overflows spoils every row that sees its slot."""
        self._withdraw(sequence)
        self._scheduler.send_back(sequence)
        sequence.pace.rest()

    def _held(self, work: Work, drawn: list[Drawn]) -> list[Drawn]:
        """The next token and those after the drafts that hold."""
        held = tokens_that_hold(drawn, work.sequence.drafts)
        work.sequence.pace.note(work.num_drafts, len(held) - 1)
        self._counters.count_drafts(work.num_drafts, len(held) - 1)
        return held

    def _advance(self, sequence: LiveSequence, drawn: list[Drawn]) -> TokenEvent:
        """Tell as many of the tokens as it may have, or its end where they are none."""
        first = sequence.num_emitted
        scores, sequence.scores = sequence.scores, None
        if not drawn[0].finite or (scores is not None and not scores.is_finite):
            return self._fail(sequence)
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

    def _fail(self, sequence: LiveSequence) -> TokenEvent:
        """The end of a sequence whose logits are not finite, or that its grammar leaves nothing to say."""
        self._withdraw(sequence)
        self._end(sequence)
        if sequence.matcher is not None and sequence.matcher.error:
            return end_event(
                sequence.request_id, sequence.num_emitted, FINISH_GRAMMAR, sequence.matcher.error
            )
        error = "the model's logits are not finite"
        logger.error("%s: %s", sequence.request_id, error)
        return end_event(sequence.request_id, sequence.num_emitted, FINISH_ERROR, error)

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

    def _close(self, planned: list[Work]) -> None:
        """Let others find what is final; forget those that have ended."""
        for sequence in [work.sequence for work in planned if work.sequence.pages]:
            self._publish(sequence)
            if sequence.finish is not None:
                self._end(sequence)

    def _publish(self, sequence: LiveSequence) -> None:
        """Its full pages, once every layer has written them for good."""
        if self._prefixes is not None:
            is_followed = self._runner.draft_tokens > 0
            self._prefixes.publish(sequence, sequence.num_followed if is_followed else sequence.num_computed)

    def _withdraw(self, sequence: LiveSequence) -> None:
        if self._prefixes is not None:
            self._prefixes.withdraw(sequence)
