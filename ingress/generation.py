"""The choices of one order while they are made.

Runs one sequence per choice and merges what they add. Knows nothing of JSON or HTTP.

Errors: whatever a sequence raises, DeadlineExceeded where no choice has spoken in time, EngineError where one
ends badly, InvalidRequest where a grammar cannot be served, Overloaded where it waits for too long to be
compiled.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self

from actors.messages import FINISH_DEADLINE, FINISH_GRAMMAR, FINISH_LENGTH, FINISH_STOP, Terms, TokenEvent
from ingress.compiler import RETRY_S, GrammarCompiler
from ingress.constraints import Constraint
from ingress.engine_client import Call, EngineClient
from ingress.errors import DeadlineExceeded, EngineError, InvalidRequest, Overloaded
from ingress.order import Order
from ingress.output import Delta, Output
from ingress.tokens import Tokenizer

logger = logging.getLogger(__name__)

TOO_LATE = "the deadline passed before the first token"


class Generation:
    """An async context: leaving it, for whatever reason, cancels every sequence that has not ended."""

    def __init__(
        self,
        engine: EngineClient,
        order: Order,
        tokenizer: Tokenizer,
        answer_id: str,
        call: Call,
        compiler: GrammarCompiler,
    ) -> None:
        self._engine = engine
        self._compiler = compiler
        self._call = call
        self._order = order
        self._tokenizer = tokenizer
        self._answer_id = answer_id
        self._added: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._num_open = len(order.samplings)
        self._has_spoken = False  # from then on the request is served whole
        self._has_begun = False  # choice 0: it cannot be refused any more, what ends it now is a failure

    async def __aenter__(self) -> Self:
        if self._order.constraint is not None:
            await self._check_grammar(self._order.constraint)
        self._tasks = [asyncio.create_task(self._make(choice)) for choice in range(self._num_open)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_done(self) -> bool:
        """Whether every choice has had its last delta."""
        return self._num_open == 0

    async def next_delta(self) -> Delta:
        """What some choice adds; raises what its sequence raised. A cancelled call loses nothing."""
        added = await self._added.get()
        if isinstance(added, Exception):
            raise added
        self._num_open -= added.finish is not None
        return added

    async def _check_grammar(self, constraint: Constraint) -> None:
        """Within the time that the request may wait; what it takes of it, the engine has no more."""
        loop, call, terms = asyncio.get_running_loop(), self._call, self._call.terms
        began_s, deadline_s, most_s = loop.time(), call.deadline_s, terms.max_wait_s
        ends_s = [] if deadline_s is None else [deadline_s]
        ends_s += [] if most_s is None else [began_s + most_s]
        try:
            async with asyncio.timeout_at(min(ends_s, default=None)):
                line = terms.is_batch, terms.tenant
                await self._compiler.check(constraint.grammar, constraint.param, line)
        except TimeoutError:
            if deadline_s is not None and loop.time() >= deadline_s:
                raise DeadlineExceeded(TOO_LATE, retry_after_s=self._engine.wait_s) from None
            waited = f"waited for {most_s:.0f} s for its grammar to be compiled"
            raise Overloaded(waited, retry_after_s=RETRY_S) from None
        if most_s is not None:
            left_s = max(0.0, most_s - (loop.time() - began_s))
            self._call = replace(call, terms=replace(terms, max_wait_s=left_s))

    async def _make(self, choice: int) -> None:
        try:
            await self._run_sequence(choice)
        except Exception as error:  # noqa: BLE001 - not handled here: raised where the deltas are awaited
            self._added.put_nowait(error)

    async def _run_sequence(self, choice: int) -> None:
        """A request is refused as a whole or not at all: its first sequence asks for all."""
        terms = replace(self._call.terms, num_together=len(self._order.samplings))
        promised = replace(terms, is_promised=True)
        if choice:
            await self._follow(choice, promised)
            return
        try:
            await self._follow(choice, terms)
        except Overloaded:
            if not self._has_spoken or self._has_begun:
                raise
            await self._follow(choice, promised)  # the others were quicker than its refusal

    async def _follow(self, choice: int, terms: Terms) -> None:
        output = Output(choice, self._tokenizer, self._order.output)
        sequence_id = f"{self._answer_id}-{choice}"
        prompt_ids, sampling = self._order.prompt_of(choice), self._order.samplings[choice]
        call = replace(self._call, terms=terms)
        watch = self._engine.metrics.watch(
            len(prompt_ids), call.parent, sequence_id=sequence_id, tenant=terms.tenant
        )
        async with aclosing(self._engine.generate(sequence_id, prompt_ids, sampling, call, watch)) as events:
            async for event in events:
                self._check(event)
                self._has_begun |= choice == 0 and bool(event.token_ids)
                delta = output.push(event)
                self._added.put_nowait(delta)
                if delta.finish is not None:
                    watch.stop(FINISH_STOP)
                    return
        raise AssertionError(f"the engine left {sequence_id} without an end")

    def _check(self, event: TokenEvent) -> None:
        """Whether it may be shown. A deadline cuts a request short that has spoken, else it was too late."""
        self._has_spoken |= bool(event.token_ids)
        if event.finish == FINISH_DEADLINE and not self._has_spoken:
            raise DeadlineExceeded(TOO_LATE, retry_after_s=self._engine.wait_s)
        if event.finish == FINISH_GRAMMAR:
            assert self._order.constraint is not None, "only a grammar ends so"
            why = f"cannot be enforced any further: {event.error}"
            raise InvalidRequest(why, param=self._order.constraint.param)
        if event.finish not in (None, FINISH_STOP, FINISH_LENGTH, FINISH_DEADLINE):
            logger.error("sequence %s ended with %s: %s", event.request_id, event.finish, event.error)
            raise EngineError("the engine could not finish this request")
