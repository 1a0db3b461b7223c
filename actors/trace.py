"""What happened when, in a few steps: spans for a timeline.

While nobody records, the loops run the very same code and objects as if this file did not exist: a recording
puts timed stand-ins in the place of what is called, and takes them away again. Knows nothing of files.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from actors.counters import Laps
from model.decoder import Decoder, Layer
from router.exchange import Exchange
from router.ticket import Ticket

LOOP, COMPUTE, COMMUNICATION = "step loop", "compute", "communication"
INDEXER = "indexer"  # within attention
MAX_SPANS = 200_000
FEW_TOKENS = 4  # of a step whose experts are told: of one request that decodes, with drafts


@dataclass(frozen=True, slots=True)
class Span:
    """start_s: since the epoch, by this machine's clock. layer: of what has none, None.

    experts: what the gate chose for the tokens of a dispatch, all of them together, if they were few.
    """

    name: str
    lane: str
    start_s: float
    seconds: float
    step: int
    layer: int | None = None
    experts: tuple[int, ...] = ()


class Recorder:
    """Spans of the next `steps` steps; written by one loop, read when it is done."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._step = 0
        self._epoch_s = time.time() - time.perf_counter()
        self.spans: list[Span] = []
        self.done = threading.Event()

    def begin_step(self) -> None:
        self._step += 1
        if self._step > self._steps:
            self.done.set()

    def note(
        self,
        name: str,
        lane: str,
        start_s: float,
        layer: int | None = None,
        experts: tuple[int, ...] = (),
    ) -> None:
        """start_s: of time.perf_counter; it ends now."""
        if not self.done.is_set() and len(self.spans) < MAX_SPANS:
            seconds = time.perf_counter() - start_s
            self.spans.append(Span(name, lane, self._epoch_s + start_s, seconds, self._step, layer, experts))

    def timed(self, part: object, method: str, name: str, layer: int | None = None) -> Any:
        """A stand-in for `part` whose `method` is timed; without a layer, its first argument is that."""
        return _Timed(part, method, name, layer, self)


class RecordingLaps(Laps):
    """The same laps, noted one by one."""

    def __init__(self, laps: Laps, recorder: Recorder) -> None:
        super().__init__()
        self.seconds = laps.seconds
        self._recorder = recorder

    def lap(self, part: str) -> None:
        self._recorder.note(part, LOOP, self._since_s)
        super().lap(part)


class RecordingExchange:
    """An exchange that notes how long it was called, and how long rows were away."""

    def __init__(self, exchange: Exchange, recorder: Recorder) -> None:
        self._exchange, self._recorder = exchange, recorder
        self._sent_s: dict[int, float] = {}  # by micro-batch

    def begin_step(self) -> None:
        self._recorder.begin_step()
        self._exchange.begin_step()

    def dispatch(self, layer: int, rows_TD: Tensor, experts_TK: Tensor, micro_batch: int = 0) -> Ticket:
        sent_s = self._sent_s[micro_batch] = time.perf_counter()
        ticket = self._exchange.dispatch(layer, rows_TD, experts_TK, micro_batch)
        few = len(experts_TK) <= FEW_TOKENS
        chosen = tuple(sorted(set(experts_TK.reshape(-1).tolist()))) if few else ()
        self._recorder.note("dispatch", COMPUTE, sent_s, layer, chosen)
        return ticket

    def combine(self, ticket: Ticket, weights_TK: Tensor) -> Tensor:
        start_s = time.perf_counter()
        sum_TD = self._exchange.combine(ticket, weights_TK)
        self._recorder.note("wait and combine", COMPUTE, start_s, ticket.layer)
        self._recorder.note("rows away", COMMUNICATION, self._sent_s[ticket.micro_batch], ticket.layer)
        return sum_TD


def recording(decoder: Decoder, exchange: Exchange, recorder: Recorder) -> tuple[Decoder, Exchange]:
    """Stand-ins that compute the same with the same weights."""
    timed = copy.copy(decoder)
    timed.layers = [_timed_layer(layer, recorder) for layer in decoder.layers]
    return timed, cast(Exchange, RecordingExchange(exchange, recorder))


def _timed_layer(layer: Layer, recorder: Recorder) -> Layer:
    def timed(part: object, method: str, name: str) -> Any:
        return None if part is None else recorder.timed(part, method, name, layer.index)

    mla = copy.copy(layer.mla)
    mla.choose = recorder.timed(layer.mla, "choose", INDEXER, layer.index).choose  # type: ignore[method-assign]
    return replace(
        layer,
        mla=timed(mla, "attend", "attention"),
        mlp=timed(layer.mlp, "forward", "dense network"),
        gate=timed(layer.gate, "choose", "gate"),
        shared=timed(layer.shared, "forward", "shared expert"),
    )


class _Timed:
    def __init__(self, part: object, method: str, name: str, layer: int | None, recorder: Recorder) -> None:
        self._part, self._method, self._name = part, method, name
        self._layer, self._recorder = layer, recorder

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        return self._time(found) if name == self._method else found

    def _time(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start_s = time.perf_counter()
            answer = call(*arguments)
            layer = arguments[0] if self._layer is None else self._layer
            self._recorder.note(self._name, COMPUTE, start_s, layer)
            return answer

        return timed
