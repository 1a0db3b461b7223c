"""Steps as rows of one model that computes any row of any sequence.

Chunks of prompts, single tokens and drafts are all rows: a token at its position, with the keys before it.
What computes them (on a GPU model/fp8_graphs.py) is prepared for some numbers of rows; the next larger is
taken and the rest are rows without a token. Since no bit of a row depends on the others, neither does a
token. Knows nothing of who runs next.

Letters: N tokens, in the order of the chunks  R rows  D hidden  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from actors.drafter import Drafter
from actors.loopback import loopback_exchange
from actors.metrics import Sample
from actors.samples import exchange_samples
from actors.scheduler import Work
from actors.sequence import Sequence as LiveSequence
from actors.trace import Recorder
from actors.verify import chunks_of, draws_of
from model.batch import Chunk
from model.config import ModelConfig
from model.row_buffers import Received, RowBuffers, StepRows
from model.sampler import Draw, Drawn, sample, takes_the_likeliest
from router.assign import Ints

FINEST_SIZE = 32  # up to here sizes double, from here on there is one more between


class RowModel(Protocol):
    """Computes what stands in a RowBuffers; only numbers of rows that it was prepared for."""

    late_compilations: int

    def prepare(self, rows: Iterable[int], draws: Iterable[int]) -> None:
        """For walks of these numbers of rows, and draws of those."""

    def walk(self, rows: int) -> None:
        """Through all layers, from `ids` to hidden_RD."""

    def walk_mtp(self, rows: int) -> None:
        """Through the MTP layer, from given_RD and the `ids` that follow to hidden_RD."""

    def draw(self, rows: int) -> None:
        """From the `places` of hidden_RD to logits_RV and drawn_3R."""


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
    ) -> None:
        self.config, self.num_pages = config, num_pages
        self.exchange = loopback_exchange(config, "itself", _nothing_is_dispatched)
        self.draft_tokens = draft_tokens if config.num_mtp_layers else 0
        self.drafter = Drafter(self._draft, draft_tokens) if self.draft_tokens else None
        self._model, self._buffers = model, buffers
        self._cache_bytes_per_token = cache_bytes_per_token
        self._hidden_ND = torch.empty(0)
        self._draws: list[Draw] = []
        self._received: Received = [], [], []
        self.padding_rows = 0
        model.prepare(sizes_up_to(buffers.most_rows), sizes_up_to(buffers.most_draws))

    def clear(self, pages: list[int]) -> None:
        """Nothing to do: no row reads a slot that was not written for its own sequence."""

    def compute(self, planned: Sequence[Work]) -> None:
        """Every token and draft, and the logits of those after which one is drawn."""
        self.exchange.begin_step()
        num_rows = self._launch([chunk for work in planned for chunk in chunks_of(work)], self._model.walk)
        if self.drafter is not None:
            self._hidden_ND = self._buffers.hidden_RD[:num_rows].clone()
        self._draws = [draw for work in planned for draw in draws_of(work)]  # while the device computes
        self._received = self._buffers.receive(len(self._draws))

    def draw(self, planned: Sequence[Work]) -> list[Drawn]:
        """What follows each token of the computed step after which one is drawn."""
        return self._drawn(self._draws, self._received)

    def hidden(self, planned: Sequence[Work]) -> list[Tensor]:
        """Of each work's tokens and drafts in the last step, [tokens, D]."""
        return list(torch.split(self._hidden_ND, [work.num_tokens + work.num_drafts for work in planned]))

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
        yield from exchange_samples(self.exchange)

    def record(self, recorder: Recorder | None) -> None:
        """The step loop's own laps are all that can be told: a step is one launch."""

    def _launch(self, chunks: Iterable[Chunk], walk: Callable[[int], None]) -> int:
        """All tokens of the chunks through the layers, and the logits after those that want some.

        Returns how many tokens, without waiting. A quicker way for large chunks belongs here.
        """
        rows, buffers = StepRows(), self._buffers
        for chunk in chunks:
            rows.add(chunk, buffers.tables.seat(chunk.pages))
        num_rows, num_draws = len(rows.ids), len(rows.places)
        size, draw_size = size_for(buffers.most_rows, num_rows), size_for(buffers.most_draws, num_draws)
        buffers.send(rows, size, draw_size)
        self.padding_rows += size - num_rows
        walk(size)
        if num_draws:
            self._model.draw(draw_size)
        return num_rows

    def _drawn(self, draws: Sequence[Draw], received: Received) -> list[Drawn]:
        """Of the last launch. What asks for more than the likeliest token is drawn from the logits, here."""
        drawn = [
            Drawn(token, None if draw.sampling.logprobs is None else logprob) if finite else NOT_FINITE
            for draw, token, logprob, finite in zip(draws, *received, strict=True)
        ]
        special = [place for place, draw in enumerate(draws) if not takes_the_likeliest(draw)]
        if special:
            logits_BV = self._buffers.logits_RV[special].cpu()
            for place, token in zip(special, sample(logits_BV, [draws[i] for i in special]), strict=True):
                drawn[place] = token
        return drawn

    def _draft(
        self, chunks: Sequence[Chunk], hidden_ND: Tensor, draws: Sequence[Draw]
    ) -> tuple[Tensor, list[Drawn]]:
        """A pass of the MTP layer, in parts where there are too many rows for one."""
        hidden: list[Tensor] = []
        drawn: list[Drawn] = []
        done = 0
        for part in parts_of(chunks, self._buffers.most_rows):
            places = [place for place, chunk in zip(_ends(part), part, strict=True) if chunk.wants_logits]
            num_rows = sum(len(chunk.token_ids) for chunk in part)
            self._buffers.given_RD[:num_rows].copy_(hidden_ND[done : done + num_rows])
            self._launch(part, self._model.walk_mtp)
            hidden.append(self._buffers.hidden_RD[places])
            own = draws[len(drawn) : len(drawn) + len(places)]
            drawn += self._drawn(own, self._buffers.receive(len(own)))
            done += num_rows
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


def _ends(chunks: Iterable[Chunk]) -> list[int]:
    """The place of the last token of each."""
    ends, end = [], 0
    for chunk in chunks:
        end += len(chunk.token_ids)
        ends.append(end - 1)
    return ends


def _nothing_is_dispatched(layer: int, rows_RD: Tensor, row_P: Ints, expert_P: Ints) -> Tensor:
    raise AssertionError(f"rows of layer {layer} were dispatched: the experts are in the step itself")
