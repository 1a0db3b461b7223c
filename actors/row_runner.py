"""Steps as rows of one model that computes any row of any sequence.

Chunks of prompts, single tokens and drafts are all rows: a token at its position, with the keys before it.
What computes them (actors/row_model.py) is prepared for some numbers of rows; the next larger is
taken and the rest are rows without a token. What is too much for that goes another way, with the same bits.
Since no bit of a row depends on the others, neither does a token. Knows nothing of who runs next.

Letters: N tokens, in the order of the chunks  R rows  D hidden  V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from actors.drafter import Drafter
from actors.loopback import loopback_exchange
from actors.metrics import Sample
from actors.row_model import RowModel
from actors.row_trace import RecordingRows
from actors.samples import exchange_samples
from actors.scheduler import Work
from actors.sequence import Sequence as LiveSequence
from actors.trace import Recorder, RecordingExchange
from actors.verify import chunks_of, draws_of
from model.batch import Chunk
from model.config import ModelConfig
from model.row_buffers import Received, RowBuffers, RowSpan, StepRows
from model.sampler import Draw, Drawn, takes_the_likeliest
from router.assign import Ints
from router.exchange import Exchange
from router.load import ExpertLoad

SHORT_CHUNK = 32  # tokens that are rows whatever else is in the step
FINEST_SIZE = 32  # up to here sizes double, from here on there is one more between


class RowRunner:
    """One attention actor's model, with all its experts."""

    def __init__(
        self,
        config: ModelConfig,
        model: RowModel,
        buffers: RowBuffers,
        *,
        num_pages: int,
        cache_bytes_per_token: int,
        draft_tokens: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config, self.num_pages = config, num_pages
        self.exchange = loopback_exchange(config, "itself", _nothing_is_dispatched)
        self.draft_tokens = draft_tokens if config.num_mtp_layers else 0
        self.drafter = Drafter(self._draft, draft_tokens) if self.draft_tokens else None
        self.portable = None  # pages stay on their GPU
        self._model, self._buffers, self._clock = model, buffers, clock
        self._cache_bytes_per_token = cache_bytes_per_token
        self._hidden_RD = torch.empty(0)
        self._first_rows: list[int] = []  # of the last step's chunks
        self._draws: list[Draw] = []
        self._received: Received = [], [], []
        self.padding_rows = 0
        self.waited_s = 0.0  # for the device
        model.prepare(sizes_up_to(buffers.most_rows), sizes_up_to(buffers.most_draws))
        view = self.exchange.view
        self.exchange.load = ExpertLoad(
            view.num_layers, view.num_experts, read=lambda: model.expert_pairs().numpy()
        )
        self._walked: tuple[RowModel, Exchange | RecordingExchange] = model, self.exchange  # as in Runner

    def clear(self, pages: list[int]) -> None:
        """Nothing to do: no row reads a slot that was not written for its own sequence."""

    def compute(self, planned: Sequence[Work]) -> None:
        """Every token and draft, and the logits of those after which one is drawn."""
        self._walked[1].begin_step()
        chunks = [chunk for work in planned for chunk in chunks_of(work)]
        self._first_rows = self._launch(chunks)
        hidden_RD = self._buffers.hidden_RD
        self._hidden_RD = hidden_RD if self.drafter is None else hidden_RD.clone()  # it computes there, too
        self._draws = [draw for work in planned for draw in draws_of(work)]  # while the device computes
        self._received = self._receive(len(self._draws))

    def draw(self, planned: Sequence[Work]) -> list[Drawn]:
        """What follows each token of the computed step after which one is drawn."""
        return self._drawn(self._draws, self._received)

    def hidden(self, planned: Sequence[Work]) -> list[Tensor]:
        """Of each work's tokens and drafts in the last step, [tokens, D]."""
        hidden, first_rows = [], iter(self._first_rows)
        for work in planned:
            first = next(first_rows)
            hidden.append(self._hidden_RD[first : first + work.num_tokens + work.num_drafts])
            for _ in range(work.num_drafts):
                next(first_rows)  # a draft's row is the next one
        return hidden

    def logits(self, hidden_ND: Tensor, rows_R: Tensor) -> Tensor:
        """fp32 [R, V] of more rows of the last step, as `hidden` gives them."""
        return self._model.logits(hidden_ND.index_select(0, rows_R.to(hidden_ND.device))).cpu()

    def follow(self, advanced: Sequence[tuple[LiveSequence, Tensor]]) -> None:
        """Let the drafter see what holds of the step: each sequence with hidden states, as `hidden` gives."""
        if self.drafter is not None:
            self.drafter.follow(advanced)

    def stats(self) -> dict[str, float]:
        """What an operator asks first."""
        return {
            "cache_bytes_per_token": self._cache_bytes_per_token,
            "epoch": self.exchange.view.epoch,
            "padding_rows": self.padding_rows,
            "late_compilations": self._model.late_compilations,
        }

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        yield Sample("shoal_late_compilations_total", self._model.late_compilations)
        yield Sample("shoal_device_wait_seconds_total", self.waited_s)
        yield from exchange_samples(self.exchange)

    def record(self, recorder: Recorder | None) -> None:
        """Note what happens when from the next step on, or no more; safe from any thread."""
        self._walked = self._model, self.exchange
        if recorder is not None:
            model = RecordingRows(self._model, self._buffers.wait, self.exchange.view.first_layer, recorder)
            self._walked = model, RecordingExchange(self.exchange, recorder)

    def _launch(self, chunks: Sequence[Chunk], given_ND: Tensor | None = None) -> list[int]:
        """All tokens of the chunks through the layers, and the logits after those that want some.

        given_ND: what the MTP layer reads with them, if it is that which they go through. Returns the first
        row of each chunk, without waiting.
        """
        (model, _), buffers, rows = self._walked, self._buffers, StepRows()
        first_rows, seat = [0] * len(chunks), buffers.tables.seat
        many = self._taken_as_many(chunks)
        few = [i for i in range(len(chunks)) if i not in many] if many else range(len(chunks))
        for i in few:
            first_rows[i] = rows.add(chunks[i], seat(chunks[i].pages))
        size = size_for(buffers.most_rows, len(rows.ids)) if few else 0
        self.padding_rows += size - len(rows.ids)
        rows.pad(size)
        for i in many:
            first_rows[i] = rows.add(chunks[i], seat(chunks[i].pages))
        places = [
            first + len(chunk.token_ids) - 1
            for first, chunk in zip(first_rows, chunks, strict=True)
            if chunk.wants_logits
        ]
        buffers.send(rows, places)
        if given_ND is not None:
            self._give(given_ND, first_rows, chunks)
        mtp = given_ND is not None
        if size:
            model.walk(size, mtp=mtp)
        if many:
            spans = [
                RowSpan(
                    first_row=first_rows[i],
                    num_rows=len(chunks[i].token_ids),
                    first_position=chunks[i].start,
                    seat=seat(chunks[i].pages),
                )
                for i in many
            ]
            model.walk_many(spans, mtp=mtp)
        if places:
            model.draw(size_for(buffers.most_draws, len(places)))
        return first_rows

    def _give(self, given_ND: Tensor, first_rows: Sequence[int], chunks: Sequence[Chunk]) -> None:
        """Into the rows of these chunks, in whose order it is given."""
        rows = [
            row
            for first, chunk in zip(first_rows, chunks, strict=True)
            for row in range(first, first + len(chunk.token_ids))
        ]
        given_RD = self._buffers.given_RD
        if rows == list(range(len(rows))):
            given_RD[: len(rows)].copy_(given_ND)
        else:
            given_RD[torch.tensor(rows, device=given_RD.device)] = given_ND

    def _taken_as_many(self, chunks: Sequence[Chunk]) -> list[int]:
        """Which go the way of long chunks: none where one graph takes all, since weights are read once then.

        Else all but the shortest, and of those the longest if they are still too many.
        """
        buffers = self._buffers
        lengths = [len(chunk.token_ids) for chunk in chunks]
        few = sum(lengths)
        if few <= buffers.most_rows or not buffers.most_many:
            return []
        many = []
        for i in sorted(range(len(chunks)), key=lambda i: -lengths[i]):
            if lengths[i] < SHORT_CHUNK and few <= buffers.most_rows:
                break
            many.append(i)
            few -= lengths[i]
        return sorted(many)

    def _receive(self, draws: int) -> Received:
        """What the device has drawn, when it has."""
        start_s = self._clock()
        received = self._buffers.receive(draws)
        self.waited_s += self._clock() - start_s
        return received

    def _drawn(self, draws: Sequence[Draw], received: Received) -> list[Drawn]:
        """Of the last launch."""
        drawn = [
            Drawn(token, None if draw.sampling.logprobs is None else logprob) if finite else NOT_FINITE
            for draw, token, logprob, finite in zip(draws, *received, strict=True)
        ]
        special = [i for i, draw in enumerate(draws) if drawn[i].finite and not takes_the_likeliest(draw)]
        if special:
            sampled = self._walked[0].sample(special, [draws[i] for i in special])
            for place, token in zip(special, sampled, strict=True):
                drawn[place] = token
        return drawn

    def _draft(
        self, chunks: Sequence[Chunk], hidden_ND: Tensor, draws: Sequence[Draw]
    ) -> tuple[Tensor, list[Drawn]]:
        """A pass of the MTP layer, in parts where there are too many rows for one."""
        buffers = self._buffers
        hidden: list[Tensor] = []
        drawn: list[Drawn] = []
        first = 0
        for part in parts_of(chunks, max(buffers.most_rows, buffers.most_many)):
            end = first + sum(len(chunk.token_ids) for chunk in part)
            self._launch(part, hidden_ND[first:end])
            own = draws[len(drawn) :][: sum(chunk.wants_logits for chunk in part)]
            hidden.append(buffers.hidden_RD.index_select(0, buffers.places(len(own))))
            drawn += self._drawn(own, self._receive(len(own)))
            first = end
        return torch.cat(hidden), drawn


NOT_FINITE = Drawn(0, finite=False)


@cache
def sizes_up_to(most: int) -> tuple[int, ...]:
    """Numbers of rows to prepare for: 1, 2, 4, 8, 16, 32, 48, 64, 96, 128, ... and the most itself."""
    sizes, size = set(), 1
    while size < most:
        sizes |= {size} if size < FINEST_SIZE else {size, size * 3 // 2}
        size *= 2
    return tuple(sorted({one for one in sizes if one < most} | {most}))


def parts_of(chunks: Iterable[Chunk], most_rows: int) -> list[list[Chunk]]:
    """The chunks in order, cut where most_rows are full: what is later sees what is before it."""
    parts: list[list[Chunk]] = [[]]
    room = most_rows
    for chunk in chunks:
        while len(chunk.token_ids) > room:
            head, tail = chunk.token_ids[:room], chunk.token_ids[room:]
            if room:
                parts[-1].append(replace(chunk, token_ids=head, wants_logits=False))
            parts.append([])
            chunk, room = replace(chunk, token_ids=tail, start=chunk.start + len(head)), most_rows
        parts[-1].append(chunk)
        room -= len(chunk.token_ids)
    return parts


def size_for(most: int, count: int) -> int:
    """The least of the sizes up to `most` that holds so many."""
    assert count <= most, f"{count} rows: the buffers, and so the scheduler's limits, are for {most}"
    return next(size for size in sizes_up_to(most) if size >= count)


def _nothing_is_dispatched(layer: int, rows_RD: Tensor, row_P: Ints, expert_P: Ints) -> Tensor:
    raise AssertionError(f"rows of layer {layer} were dispatched: the experts are in the step itself")
