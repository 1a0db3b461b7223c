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

import numpy as np

from actors.engine import Engine, OwnedEvents
from actors.messages import (
    FINISH_ERROR,
    Cancel,
    Events,
    Sampling,
    Submit,
    Terms,
    TokenEvent,
    end_event,
    pack_events,
    taken_event,
)
from actors.metrics import Sample
from router.exchange import StepAbandoned
from router.heartbeat import beating
from router.listener import Arrival, Listener, Peer
from router.load import Counts
from router.view import Pair, View
from router.wire import BadFrame, from_fields, kinds

logger = logging.getLogger(__name__)

IDLE_POLL_S = 1.0


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


class AttentionServer:
    """Serves ingresses until told to stop."""

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
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._views = views
        self._stopping = stopping
        self._listener = Listener(
            host, port, token=token, actor=actor_id, incarnation=incarnation, accepted=kinds(Submit, Cancel)
        )
        self.host, self.port = self._listener.host, self._listener.port

    def run(self) -> None:
        """The loop: listen, step, tell."""
        try:
            with beating(self._listener.beat):
                while not self._stopping.is_set():
                    self._turn()
        except StepAbandoned:
            logger.info("stopped in the middle of a step")
        finally:
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
        self._tell(self._engine.expire(self._clock()))
        self._tell(self._engine.step(self._clock()))
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
    def convicted(self) -> tuple[tuple[str, int], ...]:
        """(actor id, incarnation) of experts that sent rubbish."""
        return tuple((life.actor_id, life.incarnation) for life in self._engine.convicted)

    def set_view(self, view: View) -> None:
        """A newer view for the step loop to adopt; safe from any thread."""
        self._views.put(view)

    def stats(self) -> dict[str, float]:
        """Counters since birth; read from another thread, so neighbours may be one step apart."""
        return self._engine.stats()

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        return self._engine.samples()

    def expert_pairs(self) -> Counts:
        """[L, E] pairs (token, expert) since birth; read from another thread."""
        return self._engine.expert_pairs()

    def _listen(self, timeout_s: float) -> None:
        """Take submissions and cancellations, and say which are let in and which have ended."""
        at_once: OwnedEvents = defaultdict(list)
        for arrival in self._listener.poll(timeout_s):
            event = self._take(arrival)
            if event is not None:
                at_once[arrival.peer].append(event)
        self._tell(at_once)

    def _take(self, arrival: Arrival) -> TokenEvent | None:
        peer = arrival.peer
        if arrival.frame is None:
            dropped = self._engine.disown(peer)
            if dropped:
                logger.warning("ingress %s left; %d sequences dropped", peer.actor, dropped)
            return None
        message = arrival.frame.message
        if isinstance(message, Cancel):
            return self._engine.cancel(peer, message.request_id)
        assert isinstance(message, Submit), "the listener accepts Submit and Cancel only"
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
        prompt, emitted = ids[: message.num_prompt], ids[message.num_prompt :]
        name, now_s = message.request_id, self._clock()
        ended = self._engine.submit(peer, name, prompt, emitted, sampling, terms, now_s)
        return ended or taken_event(name, message.num_emitted)

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
