"""The attention actor: sequences, and the loop that serves them.

One thread does everything: take what the ingresses sent, compute a step, send each ingress its tokens in one
frame. Knows nothing of Ray or HTTP: cluster/ wraps this class as an actor, tests run it in a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import numpy as np

from actors.admission import is_late
from actors.engine import Engine, OwnedEvents
from actors.fault_points import arm, poison
from actors.handover import Sender
from actors.handover_desk import HandoverDesk
from actors.matchers import Made, MatcherDesk
from actors.messages import (
    FINISH_CANCELLED,
    FINISH_ERROR,
    FINISH_GRAMMAR,
    FINISH_OVERLOADED,
    Cancel,
    Events,
    HandOver,
    Sampling,
    Submit,
    Terms,
    TokenEvent,
    end_event,
    pack_events,
    taken_event,
)
from actors.metrics import Sample
from actors.page_frames import Offer, Pages
from actors.trace import Recorder
from model.grammar import GrammarError, Grammars
from model.matcher import Matcher
from router.exchange import StepAbandoned
from router.heartbeat import beating
from router.listener import Arrival, Listener, Peer
from router.load import Counts
from router.view import Pair, View
from router.wire import BadFrame, from_fields, kinds

logger = logging.getLogger(__name__)

IDLE_POLL_S = 1.0
MAX_UNMATCHED = 1024  # sequences that wait for their matchers
UNMATCHED_RETRY_S = 1.0


class ViewInbox:
    """The newest view that the controller has sent; written by any thread, read by the step loop."""

    def __init__(self) -> None:
        self._newest: View | None = None
        self._putting = threading.Lock()

    def put(self, view: View) -> None:
        with self._putting:
            if self._newest is None or view.epoch > self._newest.epoch:
                self._newest = view

    def newest(self) -> View | None:
        return self._newest


@dataclass(frozen=True, kw_only=True, slots=True)
class _Submission:
    """What a Submit said, and when."""

    peer: Peer
    name: str
    prompt_ids: list[int]
    emitted_ids: list[int]
    sampling: Sampling
    terms: Terms
    since_s: float


class AttentionServer:
    """Serves ingresses until told to stop.

    grammars: None where no text can be held to one. maker: what pages are made by, as in Offer.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        views: ViewInbox,
        stopping: threading.Event,
        actor_id: str,
        incarnation: int,
        token: bytes,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.monotonic,
        grammars: Grammars | None = None,
        maker: str = "",
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._views = views
        self._stopping = stopping
        self._listener = Listener(
            host,
            port,
            token=token,
            actor=actor_id,
            incarnation=incarnation,
            accepted=kinds(Submit, Cancel, HandOver, Offer, Pages),
        )
        self.host, self.port = self._listener.host, self._listener.port
        self._desk = MatcherDesk(grammars, announce=self._listener.wake)
        self._unmatched: dict[Hashable, _Submission] = {}  # by peer and name
        sender = Sender(token=token, actor_id=actor_id, incarnation=incarnation, maker=maker)
        self._handovers = HandoverDesk(engine, sender, self._listener.wake)

    def run(self) -> None:
        """The loop: listen, step, tell."""
        try:
            with beating(self._listener.beat):
                while not self._stopping.is_set():
                    self._turn()
        except StepAbandoned:
            logger.info("stopped in the middle of a step")
        finally:
            self._desk.close()
            self._listener.close()

    def _turn(self) -> None:
        laps = self._engine.counters.laps
        if self._engine.has_work:
            self._listen(0.0)
            laps.lap("listen")
        else:
            self._engine.hear_experts()
            self._listen(IDLE_POLL_S)
            laps.lap("idle")
        self._tell(self._expire_unmatched(self._clock()))
        self._tell(self._engine.expire(self._clock()))
        self._tell(self._engine.let_in(self._clock()))
        self._handovers.expire(self._clock())
        self._tell(self._engine.step(self._clock()))
        self._tell(self._handovers.go_on(self._clock()))
        laps.lap("tell")

    def stop(self) -> None:
        """End the loop soon; safe from any thread."""
        self._stopping.set()
        self._listener.wake()

    @property
    def epoch(self) -> int:
        """Of the newest view that has reached this actor."""
        newest = self._views.newest()
        return self._engine.epoch if newest is None else max(newest.epoch, self._engine.epoch)

    @property
    def epoch_in_use(self) -> int:
        """Of the view that it computes with: no parcel goes out by an older one any more."""
        return self._engine.epoch

    @property
    def pairs(self) -> frozenset[Pair]:
        """Of routed experts it holds none that others may ask for."""
        return frozenset()

    @property
    def digests(self) -> dict[Pair, int]:
        """It has read none."""
        return {}

    @property
    def convicted(self) -> tuple[tuple[str, int], ...]:
        """(actor id, incarnation) of experts that sent rubbish."""
        return tuple((life.actor_id, life.incarnation) for life in self._engine.convicted)

    @property
    def num_sequences(self) -> int:
        """Under way here, those included that wait for their turn or for their grammar; from any thread."""
        return self._engine.num_sequences + len(self._unmatched)

    @property
    def is_handing_over(self) -> bool:
        """Whether of these some are on their way to others, and get on; from any thread."""
        return self._handovers.is_under_way(self._clock())

    def set_view(self, view: View) -> None:
        """A newer view for the step loop to adopt; safe from any thread."""
        self._views.put(view)

    def stats(self) -> dict[str, float]:
        """Counters since birth; read from another thread, so neighbours may be one step apart."""
        return {
            **self._engine.stats(),
            "handed_sequences": self._handovers.counters.sequences,
            "handed_pages_out": self._handovers.counters.pages_out,
            "handed_pages_in": self._handovers.counters.pages_in,
        }

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        yield from self._engine.samples()
        yield from self._handovers.samples()

    def record(self, recorder: Recorder | None) -> None:
        """See Engine.record; safe from any thread."""
        self._engine.record(recorder)

    def arm(self, point: str, passes: int) -> None:
        """For fault tests, as actors.fault_points.arm; safe from any thread."""
        arm({**self._engine.fault_parts, "listener": self._listener}, point, passes)

    def poison(self, seed: int) -> None:
        """For fault tests: whoever computes a sequence of this seed dies of it. Safe from any thread."""
        poison(self._engine.fault_parts, seed)

    def expert_pairs(self) -> Counts:
        """[L, E] pairs (token, expert) since birth; read from another thread."""
        return self._engine.expert_pairs()

    def _listen(self, timeout_s: float) -> None:
        """Take what came, and say which sequences are let in and which have ended."""
        at_once: OwnedEvents = defaultdict(list)
        for arrival in self._listener.poll(timeout_s):
            event = self._take(arrival)
            if event is not None:
                at_once[arrival.peer].append(event)
        for key, made in self._desk.take():
            submission = self._unmatched.pop(key, None)
            if submission is None:
                continue  # somebody has cancelled it
            if (told := self._matched(submission, made)) is not None:
                at_once[submission.peer].append(told)
        self._tell(at_once)

    def _take(self, arrival: Arrival) -> TokenEvent | None:
        peer = arrival.peer
        if arrival.frame is None:
            self._handovers.forget(peer)
            dropped = self._engine.disown(peer) + self._forget_unmatched(peer)
            if dropped:
                logger.warning("ingress %s left; %d sequences dropped", peer.actor, dropped)
            return None
        message = arrival.frame.message
        if isinstance(message, Cancel):
            if self._forget(peer, message.request_id) is not None:
                return end_event(message.request_id, 0, FINISH_CANCELLED)
            return self._engine.cancel(peer, message.request_id)
        if isinstance(message, HandOver):
            self._handovers.order(peer, message)
            return None
        if isinstance(message, Offer | Pages):
            answer = self._handovers.come(peer, message, arrival.frame.payload, self._clock())
            if answer is not None:
                self._listener.send(peer, answer)
            return None
        assert isinstance(message, Submit), "the listener accepts nothing else"
        try:
            ids = np.frombuffer(arrival.frame.payload, dtype="<i4").tolist()
            counts = (message.num_prompt, message.num_emitted)
            if min(counts) < 0 or len(ids) != sum(counts):
                raise BadFrame(
                    f"submit of {message.num_prompt} + {message.num_emitted} tokens has {len(ids)}"
                )
            sampling = from_fields(Sampling, dict(message.sampling))
            terms = from_fields(Terms, dict(message.terms))
        except (BadFrame, ValueError) as error:
            return end_event(message.request_id, message.num_emitted, FINISH_ERROR, str(error))
        submission = _Submission(
            peer=peer,
            name=message.request_id,
            prompt_ids=ids[: message.num_prompt],
            emitted_ids=ids[message.num_prompt :],
            sampling=sampling,
            terms=terms,
            since_s=self._clock(),
        )
        return self._await_matcher(submission) if sampling.grammar else self._submit(submission)

    def _submit(self, submission: _Submission, matcher: Matcher | None = None) -> TokenEvent | None:
        """To the engine; what to tell of it at once, of a suspect only if it has ended."""
        ended = self._engine.submit(
            submission.peer,
            submission.name,
            submission.prompt_ids,
            submission.emitted_ids,
            submission.sampling,
            submission.terms,
            submission.since_s,
            matcher,
        )
        if ended is None and not submission.terms.is_suspect:
            return taken_event(submission.name, len(submission.emitted_ids))
        return ended

    def _await_matcher(self, submission: _Submission) -> TokenEvent | None:
        """Order it; the engine hears of the sequence when it is made."""
        key, num_emitted = (submission.peer, submission.name), len(submission.emitted_ids)
        if key in self._unmatched:
            problem = f"request id {submission.name} is already running"
            return end_event(submission.name, num_emitted, FINISH_ERROR, problem)
        if len(self._unmatched) >= MAX_UNMATCHED and not submission.terms.is_promised:
            problem = f"{MAX_UNMATCHED} sequences wait for their grammars"
            return end_event(submission.name, num_emitted, FINISH_OVERLOADED, problem, UNMATCHED_RETRY_S)
        self._unmatched[key] = submission
        terms = submission.terms
        line = terms.is_batch, terms.tenant
        self._desk.order(key, submission.sampling, submission.emitted_ids, line)
        return None

    def _matched(self, submission: _Submission, made: Made) -> TokenEvent | None:
        name, num_emitted = submission.name, len(submission.emitted_ids)
        if isinstance(made, GrammarError):
            return end_event(name, num_emitted, FINISH_GRAMMAR, str(made))
        if isinstance(made, Exception):
            return end_event(name, num_emitted, FINISH_ERROR, "its grammar could not be made ready")
        return self._submit(submission, made)

    def _expire_unmatched(self, now_s: float) -> OwnedEvents:
        """Refuse those that have waited for their grammar for longer than they may."""
        events: OwnedEvents = defaultdict(list)
        for late in [one for one in self._unmatched.values() if is_late(one.terms, one.since_s, now_s)]:
            self._forget(late.peer, late.name)
            problem = f"waited for {now_s - late.since_s:.0f} s for its grammar"
            ended = end_event(late.name, len(late.emitted_ids), FINISH_OVERLOADED, problem, UNMATCHED_RETRY_S)
            events[late.peer].append(ended)
        return events

    def _forget_unmatched(self, peer: Peer) -> int:
        gone = [submission.name for submission in self._unmatched.values() if submission.peer == peer]
        for name in gone:
            self._forget(peer, name)
        return len(gone)

    def _forget(self, peer: Peer, name: str) -> _Submission | None:
        """It waits for no grammar any more; None: it did not."""
        self._desk.withdraw((peer, name))
        return self._unmatched.pop((peer, name), None)

    def _tell(self, events: dict[Hashable, list[TokenEvent]]) -> None:
        """One frame per ingress."""
        for owner, own in events.items():
            assert isinstance(owner, Peer), "this server's sequences are owned by its peers"
            payload = pack_events(own)
            header = Events(
                num_events=len(own),
                num_waiting=self._engine.num_waiting,
                num_running=self._engine.num_running,
                free_pages=self._engine.free_pages,
                wait_s=self._engine.wait_s,
            )
            self._listener.send(owner, header, payload)
