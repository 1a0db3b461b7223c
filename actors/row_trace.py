"""A recording of rows: what the device took for each part.

Stand-ins as in actors/trace.py. While somebody records, the device is waited for after every part, so that a
span is its time; then a step's launches hide nothing of the host's work. Knows nothing of sequences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from actors.row_model import RowModel
from actors.trace import COMPUTE, FEW_TOKENS, Recorder
from model.row_buffers import RowSpan
from model.sampler import Draw, Drawn


class RecordingRows:
    """Computes the same with the same model. wait: until the device is done; first_layer: with experts."""

    def __init__(
        self, model: RowModel, wait: Callable[[], None], first_layer: int, recorder: Recorder
    ) -> None:
        self._model, self._wait = model, wait
        self._first_layer, self._recorder = first_layer, recorder

    @property
    def late_compilations(self) -> int:
        return self._model.late_compilations

    def prepare(self, rows: Iterable[int], draws: Iterable[int]) -> None:
        self._model.prepare(rows, draws)

    def walk(self, rows: int, *, mtp: bool = False) -> None:
        start_s = self._begin()
        counted_LE = self._model.expert_pairs() if rows <= FEW_TOKENS else None
        self._model.walk(rows, mtp=mtp)
        self._note("draft layer" if mtp else "layers", start_s)
        if counted_LE is not None:
            self._note_experts(self._model.expert_pairs() - counted_LE)

    def walk_many(self, spans: Sequence[RowSpan], *, mtp: bool = False) -> None:
        start_s = self._begin()
        self._model.walk_many(spans, mtp=mtp)
        self._note("draft layer, long chunks" if mtp else "layers, long chunks", start_s)

    def draw(self, rows: int) -> None:
        start_s = self._begin()
        self._model.draw(rows)
        self._note("head and draw", start_s)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        start_s = self._begin()
        logits_RV = self._model.logits(hidden_RD)
        self._note("head", start_s)
        return logits_RV

    def sample(self, rows: Sequence[int], draws: Sequence[Draw]) -> list[Drawn]:
        start_s = self._begin()
        drawn = self._model.sample(rows, draws)
        self._note("sample", start_s)
        return drawn

    def expert_pairs(self) -> Tensor:
        return self._model.expert_pairs()

    def _begin(self) -> float:
        self._wait()
        return time.perf_counter()

    def _note(self, name: str, start_s: float) -> None:
        self._wait()
        self._recorder.note(name, COMPUTE, start_s)

    def _note_experts(self, pairs_LE: Tensor) -> None:
        """What the gates of a walk chose, layer by layer; it is known when all of them are done."""
        for layer, pairs_E in enumerate(pairs_LE, self._first_layer):
            if chosen := tuple(pairs_E.nonzero()[:, 0].tolist()):
                self._recorder.note("experts", COMPUTE, time.perf_counter(), layer, chosen)
