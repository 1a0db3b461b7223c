"""An expert on its way from one expert actor to another.

Whoever takes it asks for part after part, a few ahead, so that who has it needs to remember nothing, and goes
on answering parcels in between. A part is bounded, the whole has the size that the config says. Knows nothing
of sockets, nor of whether what comes is what it should be.

Payload of ExpertPart: the bytes from `start` on of all the expert's tensors (model/expert_form.py), one after
another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from model.config import ModelConfig
from model.expert_form import Form, empty_expert, form_of, parts_of
from model.experts import Mlp
from router.parcels import raw_bytes
from router.view import Pair
from router.wire import BadFrame

PART_BYTES = 1 << 20
PARTS_AHEAD = 8  # asked for: who has them may have time for several between two batches
NO_FORM = ("", "")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertWanted:
    """The next part, from byte `start` on."""

    KIND: ClassVar[str] = "expert_wanted"
    layer: int
    expert: int
    start: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertPart:
    """The answer. problem: why there is none."""

    KIND: ClassVar[str] = "expert_part"
    layer: int
    expert: int
    start: int
    form: Form = NO_FORM
    problem: str | None = None


def part_of(expert: Mlp | None, wanted: ExpertWanted) -> tuple[ExpertPart, list[memoryview]]:
    """What was wanted of it, sharing memory with the weights. None: it is not held."""
    answer = ExpertPart(layer=wanted.layer, expert=wanted.expert, start=wanted.start)
    if expert is None:
        return replace(answer, problem="it is not held here"), []
    payload = list(_cut(_views(expert), wanted.start, PART_BYTES)) if wanted.start >= 0 else []
    if not payload:
        return replace(answer, problem=f"it has no byte {wanted.start}"), []
    return replace(answer, form=form_of(expert)), payload


class Assembly:
    """One expert in the making. dtype: of the products' weights."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, pair: Pair) -> None:
        self._config, self._dtype, self._pair = config, dtype, pair
        self._expert: Mlp | None = None
        self._form = NO_FORM
        self._rooms: list[memoryview] = []  # of the expert's tensors
        self.num_bytes = 0  # that have come
        self._next_start = 0  # of what is to be asked for

    @property
    def total_bytes(self) -> int:
        """0 until the first part has come."""
        return sum(map(len, self._rooms))

    @property
    def whole(self) -> Mlp | None:
        """Once all parts have come."""
        return self._expert if self.num_bytes == self.total_bytes else None

    def wanted(self) -> list[ExpertWanted]:
        """What to ask for now, so that some are always under way; the first alone: it tells the size."""
        layer, expert = self._pair
        end = min(self.num_bytes + PARTS_AHEAD * PART_BYTES, max(1, self.total_bytes))
        starts = range(self._next_start, end, PART_BYTES)
        self._next_start += len(starts) * PART_BYTES
        return [ExpertWanted(layer=layer, expert=expert, start=start) for start in starts]

    def add(self, part: ExpertPart, payload: memoryview) -> None:
        """Raises BadFrame if it is not the next part."""
        if (part.layer, part.expert, part.start) != (*self._pair, self.num_bytes):
            raise BadFrame(f"byte {part.start} of expert {part.expert} of layer {part.layer} came unasked")
        if self._expert is None:
            self._begin(part.form)
        elif part.form != self._form:
            raise BadFrame(f"an expert held as {self._form} goes on as {part.form!r:.80}")
        if len(payload) != min(PART_BYTES, self.total_bytes - self.num_bytes):
            raise BadFrame(f"{len(payload)} bytes came from {self.num_bytes} of {self.total_bytes} on")
        for room in _cut(self._rooms, self.num_bytes, len(payload)):
            room[:], payload = payload[: len(room)], payload[len(room) :]
            self.num_bytes += len(room)

    def _begin(self, form: Form) -> None:
        try:
            self._expert = empty_expert(self._config, self._dtype, form)
        except ValueError as error:
            raise BadFrame(str(error)) from None
        self._form, self._rooms = form, _views(self._expert)


def _views(expert: Mlp) -> list[memoryview]:
    return [raw_bytes(part) for part in parts_of(expert)]


def _cut(views: Sequence[memoryview], start: int, count: int) -> Iterator[memoryview]:
    """`count` bytes of them from `start` on, or as many as there are."""
    for view in views:
        piece = view[start : start + count] if start < len(view) else view[:0]
        if len(piece):
            yield piece
        start, count = max(0, start - len(view)), count - len(piece)
