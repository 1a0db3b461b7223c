"""Static memory for rows: what a captured step reads, and what it leaves.

One copy brings a step's numbers to the device, one brings what was drawn back; page numbers of a sequence
travel when they change. Knows nothing of layers, and of who computes.

Letters: R rows  S seats (sequences with pages on the device)  P pages of a sequence  D hidden  V vocabulary
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.batch import Chunk
from model.cache import PAGE_TOKENS
from model.config import ModelConfig

ROW_FIELDS = ("ids", "positions", "slots", "lengths", "seats")
Received = tuple[list[int], list[float], list[int]]  # tokens, log probabilities, whether finite
ALIGNED = 4  # int32 that fill 16 bytes: what starts at a multiple of them is read in the widest loads


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSpan:
    """Rows of one sequence's consecutive tokens."""

    first_row: int
    num_rows: int
    first_position: int
    seat: int


@dataclass(slots=True)
class StepRows:
    """Of the rows of a step, in order. lengths: keys that each sees, itself included, 0 without a token."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    seats: list[int] = field(default_factory=list)

    def add(self, chunk: Chunk, seat: int) -> int:
        """Behind those there are; returns the first."""
        first_row, count, pages = len(self.ids), len(chunk.token_ids), chunk.pages
        positions = range(chunk.start, chunk.start + count)
        self.ids += chunk.token_ids
        self.positions += positions
        self.slots += [pages[at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS for at in positions]
        self.lengths += range(chunk.start + 1, chunk.start + count + 1)
        self.seats += [seat] * count
        return first_row

    def pad(self, rows: int) -> None:
        """Rows without a token, so that there are so many."""
        missing = rows - len(self.ids)
        for values in (self.ids, self.positions, self.lengths, self.seats):
            values += [0] * missing
        self.slots += [-1] * missing


class PageTables:
    """The page numbers of sequences, on the device. A list of pages keeps its seat while it is among the last
    used; whether it has changed is seen by looking, since pages are also exchanged for equal ones.
    """

    def __init__(self, num_seats: int, num_pages: int, device: torch.device) -> None:
        self.pages_SP = torch.zeros(num_seats, _aligned(num_pages), dtype=torch.int32, device=device)
        self._host_SP = torch.zeros(self.pages_SP.shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._array_SP = self._host_SP.numpy()
        self._seats: OrderedDict[int, int] = OrderedDict()  # by the list's identity, last used last
        self._held: list[list[int]] = [[] for _ in range(num_seats)]
        self._changed: set[int] = set()

    def seat(self, pages: Sequence[int]) -> int:
        """Where these are after the next `send`."""
        seat = self._seats.pop(id(pages), len(self._seats))
        if seat == len(self._held):
            _, seat = self._seats.popitem(last=False)
        self._seats[id(pages)] = seat
        if self._held[seat] != pages:
            self._held[seat] = list(pages)
            self._array_SP[seat, : len(pages)] = pages
            self._changed.add(seat)
        return seat

    def send(self) -> None:
        """The host must not have asked for another seat until the device has what was sent."""
        if self._changed:
            changed = slice(min(self._changed), max(self._changed) + 1)
            self.pages_SP[changed].copy_(self._host_SP[changed], non_blocking=True)
            self._changed.clear()


class RowBuffers:
    """For steps of at most most_draws draws and most_sequences sequences.

    most_rows: that are computed at once, whosesoever they are. most_many: beside them, of long chunks, where
    there is a quicker way for those; 0 where there is none.

    hidden_RD: after the last norm, of the last walk. given_RD: what a walk of the MTP layer reads. logits_RV,
    and drawn_3R (token, bits of its fp32 log probability, whether all were finite): of the last draw.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        most_rows: int,
        most_draws: int,
        most_sequences: int,
        context_tokens: int,
        device: torch.device,
        most_many: int = 0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.most_rows, self.most_many, self.most_draws = most_rows, most_many, most_draws
        pinned = device.type == "cuda"
        all_rows = most_rows + most_many
        shape = (len(ROW_FIELDS) + 1, _aligned(max(all_rows, most_draws)))  # the last: places
        self._host_FR = torch.zeros(shape, dtype=torch.int32, pin_memory=pinned)
        self._array_FR = self._host_FR.numpy()
        self._device_FR = torch.zeros(self._host_FR.shape, dtype=torch.int32, device=device)
        self.tables = PageTables(most_sequences, -(-context_tokens // PAGE_TOKENS), device)
        self.hidden_RD = torch.zeros(all_rows, config.hidden_size, dtype=dtype, device=device)
        drafts = all_rows if config.num_mtp_layers else 0
        self.given_RD = torch.zeros(drafts, config.hidden_size, dtype=dtype, device=device)
        self.logits_RV = torch.zeros(most_draws, config.vocab_size, device=device)
        self.drawn_3R = torch.zeros(3, _aligned(most_draws), dtype=torch.int32, device=device)
        self._drawn_3R = torch.zeros(self.drawn_3R.shape, dtype=torch.int32, pin_memory=pinned)
        self._stream = torch.cuda.current_stream(device) if pinned else None

    def of(self, name: str, rows: int, first: int = 0) -> Tensor:
        """int32 [rows] on the device: a field of these rows."""
        return self._device_FR[ROW_FIELDS.index(name), first : first + rows]

    def places(self, draws: int) -> Tensor:
        """int32 [draws] on the device: the rows after which a token is drawn."""
        return self._device_FR[-1, :draws]

    def send(self, rows: StepRows, places: Sequence[int]) -> None:
        """All that was sent before must have been used. Draws beyond the last are of some row or other."""
        count = len(rows.ids)
        for field_R, name in zip(self._array_FR[:-1], ROW_FIELDS, strict=True):
            field_R[:count] = getattr(rows, name)
        self._array_FR[-1, : len(places)] = places
        self._device_FR.copy_(self._host_FR, non_blocking=True)
        self.tables.send()

    def receive(self, count: int) -> Received:
        """Tokens, log probabilities and whether all logits were finite, of the last draw's first rows.

        Waits for the device, also where count is 0.
        """
        self._drawn_3R.copy_(self.drawn_3R, non_blocking=True)
        self.wait()
        tokens_R, logprobs_R, finite_R = self._drawn_3R[:, :count]
        return tokens_R.tolist(), logprobs_R.view(torch.float32).tolist(), finite_R.tolist()

    def wait(self) -> None:
        """Until the device has done all that was launched."""
        if self._stream is not None:
            self._stream.synchronize()


def _aligned(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED
