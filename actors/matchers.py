"""Matchers, made on a thread of their own.

Compiling a grammar and taking what was emitted before may last longer than a step, so neither happens on the
step thread. The ingress has compiled each grammar before, in a process that it could have killed: what comes
here is known to be bounded. Knows nothing of sequences but their tokens.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from llguidance import LLMatcher

from actors.turns import Turns
from model.grammar import GrammarError, Grammars
from model.matcher import Matcher
from model.sampling import Sampling

logger = logging.getLogger(__name__)

MAX_KEPT = 64  # compiled grammars
MAX_KEPT_CHARS = 1 << 20  # of their texts
STACK_BYTES = 16 << 20  # twice what the ingress tried the grammar with

Made = Matcher | Exception  # GrammarError: the grammar's own fault


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    key: Hashable
    sampling: Sampling
    emitted_ids: Sequence[int]


class MatcherDesk:
    """One thread, begun with the first order. announce: called on it whenever something is ready."""

    def __init__(self, grammars: Grammars | None, announce: Callable[[], None]) -> None:
        self._grammars = grammars
        self._announce = announce
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._orders: Turns[_Order] = Turns()
        self._changed = threading.Condition()  # guards the orders and this:
        self._is_closed = False
        self._made: queue.SimpleQueue[tuple[Hashable, Made]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def order(
        self, key: Hashable, sampling: Sampling, emitted_ids: Sequence[int], line: Hashable = None
    ) -> None:
        """A matcher of the sampling's grammar, after these tokens. Lines take turns."""
        if self._thread is None:
            self._thread = _started(self._run)
        with self._changed:
            self._orders.put(line, key, _Order(key=key, sampling=sampling, emitted_ids=emitted_ids))
            self._changed.notify()

    def withdraw(self, key: Hashable) -> None:
        """Nobody waits for it any more; what is being made is made all the same."""
        with self._changed:
            self._orders.discard(key)

    def take(self) -> list[tuple[Hashable, Made]]:
        """What has become ready; an error is why there is no matcher."""
        return [self._made.get() for _ in range(self._made.qsize())]

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        while (order := self._next()) is not None:
            self._made.put((order.key, self._make(order)))
            self._announce()

    def _next(self) -> _Order | None:
        """Waits for one; None: no more will come."""
        with self._changed:
            while not self._is_closed:
                order = self._orders.next()
                if order is not None:
                    return order
                self._changed.wait()
        return None

    def _make(self, order: _Order) -> Made:
        if self._grammars is None:
            return GrammarError("the checkpoint has no tokenizer.json, which a grammar needs")
        try:
            begun = self._compiled(order.sampling.grammar, self._grammars)
            return matcher_of(self._grammars, begun, order.sampling, order.emitted_ids)
        except GrammarError as error:
            return error
        except Exception as error:  # of a library in another language: it may end its order, not the thread
            logger.exception("%s: its grammar", order.key)
            return error

    def _compiled(self, grammar: str, grammars: Grammars) -> LLMatcher:
        if grammar not in self._kept:
            self._kept[grammar] = grammars.compile(grammar)
        self._kept.move_to_end(grammar)
        while len(self._kept) > MAX_KEPT or sum(map(len, self._kept)) > MAX_KEPT_CHARS:
            self._kept.popitem(last=False)
        return self._kept[grammar]


def matcher_of(
    grammars: Grammars, begun: LLMatcher, sampling: Sampling, emitted_ids: Sequence[int] = ()
) -> Matcher:
    """begun: the sampling's grammar, compiled."""
    return Matcher(
        begun,
        end_ids=grammars.end_ids,
        vocab_size=grammars.vocab_size,
        after_id=sampling.grammar_after,
        emitted_ids=emitted_ids,
    )


def _started(run: Callable[[], None]) -> threading.Thread:
    before = threading.stack_size(STACK_BYTES)
    try:
        thread = threading.Thread(target=run, name="grammars", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    return thread
