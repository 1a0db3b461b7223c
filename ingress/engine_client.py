"""Every attention actor, as one engine.

A sequence goes to the actor that has seen the beginning of its prompt, or to the least busy one; if that one
is lost, its journal goes to another, and whoever consumes the events sees no gap and no duplicate. Knows
nothing of text or HTTP. One engine belongs to one event loop.

Errors: Overloaded, EngineError, EngineCrashed (ingress/errors.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from actors.messages import (
    ANY_TERMS,
    FINISH_DEADLINE,
    FINISH_OVER_SHARE,
    FINISH_OVERLOADED,
    Terms,
    TokenEvent,
    end_event,
)
from ingress.affinity import Affinity, Mark, marks_of
from ingress.errors import EngineCrashed, EngineError, Overloaded
from ingress.journal import Journal, JournalError
from ingress.link import AttentionLink, Credentials, Endpoint, Feed, LinkLost
from ingress.metrics import RequestMetrics, Watch
from model.sampling import Sampling
from router.wire import WireError

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 2.0
BEGUN_PATIENCE = 10
REFUSALS = {FINISH_OVER_SHARE: 429, FINISH_OVERLOADED: 503}  # to HTTP
MAX_LOSSES = 8  # actors lost in a row by one sequence without a new token, whatever for


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """How a request is to be served. deadline_s: on the running loop's clock. parent: W3C's traceparent."""

    terms: Terms = ANY_TERMS
    deadline_s: float | None = None
    parent: str | None = None


class EngineClient:
    """patience_s: how long a new sequence waits while no attention actor can be reached.

    prefix_cache: whether the actors keep the pages of prompts, so that it matters who has seen one.
    Connects from the first `start`, `ready` or `generate` on, which need the running loop.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        token: bytes,
        identity: str,
        patience_s: float = 30.0,
        prefix_cache: bool = True,
    ) -> None:
        self._credentials = Credentials(token=token, identity=identity, incarnation=secrets.randbits(48))
        self._patience_s = patience_s
        self._affinity = Affinity()
        self._prefix_cache = prefix_cache
        self._endpoints: tuple[Endpoint, ...] = tuple(endpoints)
        self._keepers: dict[tuple[str, str, int], _Keeper] = {}  # by place
        self._changed = asyncio.Event()
        self._is_started = False
        self._is_closed = False
        self._open_sequences = 0
        self.metrics = RequestMetrics()

    @property
    def open_sequences(self) -> int:
        """Sequences under way, those that wait for an actor included."""
        return self._open_sequences

    @property
    def wait_s(self) -> float:
        """The least estimate of the attention actors of how long until all that waits there has begun."""
        return min((link.wait_s for link in self._candidates()), default=self._patience_s)

    def start(self) -> None:
        """Begin to connect; needless but early."""
        if not self._is_started:
            self._is_started = True
            self.update(self._endpoints)

    def update(self, endpoints: Sequence[Endpoint]) -> None:
        """From now on these are the attention actors; sequences on one that is missing here move at once."""
        self._endpoints = tuple(endpoints)
        if not self._is_started:
            return
        wanted = {endpoint.place: endpoint for endpoint in endpoints}
        for place in self._keepers.keys() - wanted.keys():
            self._keepers.pop(place).stop()
        for place, endpoint in wanted.items():
            if place in self._keepers:
                self._keepers[place].endpoint = endpoint
            else:
                self._keepers[place] = _Keeper(endpoint, self._credentials, self._on_change)
        self._on_change()

    def _on_change(self) -> None:
        """Somebody has come or is to leave."""
        self._changed.set()
        heirs = sorted(self._candidates(), key=lambda link: link.open_sequences)
        for keeper in self._keepers.values():
            if keeper.endpoint.draining and keeper.link is not None and self._prefix_cache:
                keeper.link.hand_over(heirs)

    async def ready(self) -> bool:
        """Whether a sequence submitted now would find an actor."""
        self.start()
        return bool(self._candidates())

    async def close(self) -> None:
        """End every connection; sequences under way end as Overloaded."""
        self._is_closed = True
        self._changed.set()
        stopped = [keeper.stop() for keeper in self._keepers.values()]
        self._keepers.clear()
        await asyncio.gather(*stopped, return_exceptions=True)

    async def generate(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        call: Call | None = None,
        watch: Watch | None = None,
    ) -> AsyncGenerator[TokenEvent, None]:
        """The events of one sequence, the last one with `finish`; closing the generator cancels the sequence.

        A deadline that passes is a finish, also before the first token. Raises Overloaded if no actor can be
        reached or the actor refuses, EngineError if actor after actor is lost, EngineCrashed if it
        ends them. watch: where the consumer may end a sequence before the engine does.
        """
        self.start()
        call = call or Call()
        journal = Journal(request_id, prompt_ids, sampling, call.terms)
        self._open_sequences += 1
        watch = watch or self.metrics.watch(
            len(prompt_ids), call.parent, sequence_id=request_id, tenant=call.terms.tenant
        )
        finish = None
        try:
            async with aclosing(self._resumed(journal, call.deadline_s, watch)) as events:
                async for event in events:
                    if event.finish in REFUSALS:
                        raise _refused(event)
                    watch.delivered(len(event.token_ids), event.work, event.num_cached)
                    yield event
        except TimeoutError:
            finish = FINISH_DEADLINE
            yield end_event(request_id, len(journal.emitted), FINISH_DEADLINE)
        finally:
            self._open_sequences -= 1
            watch.end(journal.finish or finish)

    async def _resumed(
        self, journal: Journal, deadline_s: float | None, watch: Watch
    ) -> AsyncGenerator[TokenEvent, None]:
        """The events of `journal`'s sequence over as many actors as it takes; TimeoutError: the deadline."""
        losses = 0
        while journal.finish is None:
            num_known = len(journal.emitted)
            async with asyncio.timeout_at(deadline_s):
                link = await self._choose(journal)
            watch.sent(link.endpoint.actor_id)
            try:
                async with aclosing(_follow(link, journal, deadline_s)) as events:
                    async for event in events:
                        yield event
            finally:
                self._affinity.note(self._marks(journal), link.endpoint.actor_id)
            is_lost = len(journal.emitted) == num_known and journal.moved_to is None
            losses = losses + 1 if is_lost else 0
            self.metrics.resumed += journal.finish is None
            if journal.is_fatal:
                logger.error("sequence %s ended %d actors: given up", journal.request_id, journal.num_deaths)
                raise EngineCrashed
            if journal.finish is None and losses >= MAX_LOSSES:
                logger.error("sequence %s lost %d actors in a row: given up", journal.request_id, losses)
                raise EngineError("the engine failed repeatedly on this request")

    async def _choose(self, journal: Journal) -> AttentionLink:
        """The live actor for this sequence; others with the same beginning will follow it there."""
        try:
            has_begun = journal.attempt > 0  # it waits longer than one that can still be refused
            async with asyncio.timeout(self._patience_s * (BEGUN_PATIENCE if has_begun else 1)):
                while not (candidates := self._candidates()):
                    if self._is_closed:
                        raise Overloaded("this ingress is shutting down", retry_after_s=1.0)
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise Overloaded("no attention actor can be reached", retry_after_s=self._patience_s) from None
        links = {link.endpoint.actor_id: link for link in candidates}
        marks, chosen = self._marks(journal), journal.moved_to
        if chosen not in links:
            loads = {actor_id: link.open_sequences for actor_id, link in links.items()}
            chosen = self._affinity.choose(marks, len(journal.token_ids), loads)
        self._affinity.note(marks, chosen)
        return links[chosen]

    def _marks(self, journal: Journal) -> list[Mark]:
        return marks_of(journal.token_ids, journal.terms.page_salt) if self._prefix_cache else []

    def _candidates(self) -> list[AttentionLink]:
        open_to_new = [keeper.link for keeper in self._keepers.values() if not keeper.endpoint.draining]
        return [link for link in open_to_new if link is not None and not link.is_lost]


def _refused(event: TokenEvent) -> Overloaded:
    assert event.finish in REFUSALS and event.error is not None, "asked before"
    return Overloaded(event.error, retry_after_s=event.retry_after_s or 0.0, status=REFUSALS[event.finish])


async def _follow(
    link: AttentionLink, journal: Journal, deadline_s: float | None
) -> AsyncGenerator[TokenEvent, None]:
    """The news of `journal` from `link`, until the sequence ends, the link is lost or the time is up."""
    submit, payload = journal.resume()
    try:
        async with asyncio.timeout_at(deadline_s):
            feed = await link.submit(submit, payload)
        while (event := await _next_event(feed, deadline_s)) is not None:
            fresh = journal.accept(event)
            if fresh is not None:
                yield fresh
            if journal.finish is not None or journal.moved_to is not None:
                return
        logger.warning("%s lost %s after %d tokens", journal.request_id, link.endpoint, len(journal.emitted))
        if link.was_ended:
            journal.note_death()
    except LinkLost as error:
        logger.warning("%s was not taken: %s", journal.request_id, error)
    except JournalError as error:
        logger.error("%s by %s: resumed", error, link.endpoint)
    finally:
        if journal.finish is None:
            link.cancel(submit.request_id)
        else:
            link.release(submit.request_id)


async def _next_event(feed: Feed, deadline_s: float | None) -> TokenEvent | None:
    if deadline_s is None:
        return await feed.get()
    async with asyncio.timeout_at(deadline_s):
        return await feed.get()


class _Keeper:
    """Keeps one endpoint connected, with growing pauses between attempts."""

    def __init__(self, endpoint: Endpoint, credentials: Credentials, changed: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self.link: AttentionLink | None = None
        self._credentials = credentials
        self._changed = changed
        self._task = asyncio.create_task(self._run(), name=f"link to {endpoint.actor_id}")
        self._task.add_done_callback(_report_fault)

    def stop(self) -> asyncio.Task[None]:
        self.link = None
        self._task.cancel()
        return self._task

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                link = await AttentionLink.open(self.endpoint, self._credentials)
            except (OSError, EOFError, WireError) as error:  # TimeoutError is an OSError
                level = logging.DEBUG if failures else logging.WARNING  # once per outage
                logger.log(level, "no connection to %s: %s", self.endpoint, error)
                failures += 1
            else:
                failures = 0
                await self._serve(link)
            await asyncio.sleep(min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 10)))

    async def _serve(self, link: AttentionLink) -> None:
        logger.info("connected to %s", self.endpoint)
        self.link = link
        self._changed()
        try:
            reason = await link.run()
            logger.warning("connection to %s ended: %s", self.endpoint, reason)
        finally:
            self.link = None


def _report_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s ended by a fault of ours", task.get_name(), exc_info=error)
