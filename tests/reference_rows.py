"""Rows on the CPU: the model of actors/step.py behind the seam of actors/row_runner.py.

Every row is a chunk of one token, which tests/unit/test_exactness.py shows to be what it is in any other
chunk. So an engine on these rows must give the very bits of one on the plain runner; what is compared is all
that lies between: buffers, sizes, padding, page tables, drafts. Rows without a token leave NaN behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from actors.engine import Engine
from actors.row_runner import RowRunner
from actors.scheduler import SchedulerLimits
from actors.step import forward, forward_mtp
from model.batch import Chunk
from model.cache import PAGE_TOKENS, LatentCache
from model.decoder import Decoder
from model.row_buffers import RowBuffers, RowSpan
from model.sampler import Draw, Drawn, sample
from router.exchange import Exchange
from tests.shoals import CONTEXT


class ReferenceRows:
    def __init__(self, decoder: Decoder, exchange: Exchange, cache: LatentCache, buffers: RowBuffers) -> None:
        self._decoder, self._exchange = decoder, exchange
        self._cache, self._buffers = cache, buffers
        self._prepared: tuple[set[int], set[int]] = set(), set()
        self.late_compilations = 0
        self.walked: list[int] = []
        self.spans: list[int] = []

    def prepare(self, rows: Iterable[int], draws: Iterable[int]) -> None:
        self._prepared = set(rows), set(draws)
        self._counted_LE = self._exchange.load.pairs().copy()  # others have the same exchange

    def walk(self, rows: int, *, mtp: bool = False) -> None:
        live, chunks = self._chunks(rows)
        self._buffers.hidden_RD[:rows] = torch.nan
        self._compute(live, chunks, mtp=mtp)

    def walk_many(self, spans: Sequence[RowSpan], *, mtp: bool = False) -> None:
        for span in spans:
            rows = list(range(span.first_row, span.first_row + span.num_rows))
            tokens = self._buffers.of("ids", span.num_rows, span.first_row).tolist()
            pages = self._buffers.tables.pages_SP[span.seat].tolist()
            chunk = Chunk(token_ids=tokens, start=span.first_position, pages=pages, wants_logits=True)
            self.spans.append(span.num_rows)
            self._compute(rows, [chunk], mtp=mtp)

    def _compute(self, rows: list[int], chunks: list[Chunk], *, mtp: bool) -> None:
        decoder, buffers = self._decoder, self._buffers
        if mtp:
            assert decoder.mtp is not None
            given_ND = buffers.given_RD[rows]
            out_ND = forward_mtp(decoder, decoder.mtp, chunks, given_ND, self._cache, self._exchange)
        else:
            out_ND = forward(decoder, chunks, self._cache, self._exchange)
        buffers.hidden_RD[rows] = out_ND

    def draw(self, rows: int) -> None:
        assert rows in self._prepared[1]
        buffers = self._buffers
        logits_RV = self._decoder.logits(buffers.hidden_RD, buffers.places(rows).long())
        buffers.logits_RV[:rows] = logits_RV
        for row, logits_V in enumerate(logits_RV):
            token = logits_V.argmax()
            buffers.drawn_3R[0, row] = token
            buffers.drawn_3R[1, row] = torch.log_softmax(logits_V, -1)[token].view(torch.int32)
            buffers.drawn_3R[2, row] = torch.isfinite(logits_V).all()

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        return self._decoder.logits(hidden_RD, torch.arange(len(hidden_RD)))

    def sample(self, rows: Sequence[int], draws: Sequence[Draw]) -> list[Drawn]:
        return sample(self._buffers.logits_RV[list(rows)], draws)

    def expert_pairs(self) -> torch.Tensor:
        return torch.from_numpy(self._exchange.load.pairs() - self._counted_LE)

    def _chunks(self, rows: int) -> tuple[list[int], list[Chunk]]:
        assert rows in self._prepared[0], "only what was prepared at start"
        self.walked.append(rows)
        buffers = self._buffers
        fields = [
            buffers.of(name, rows).tolist() for name in ("ids", "positions", "slots", "lengths", "seats")
        ]
        live, chunks = [], []
        for row, (token, position, slot, length, seat) in enumerate(zip(*fields, strict=True)):
            if length == 0:
                assert slot == -1, "a row without a token writes nothing"
                continue
            pages = buffers.tables.pages_SP[seat].tolist()
            assert length == position + 1
            assert slot == pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
            live.append(row)
            chunks.append(Chunk(token_ids=[token], start=position, pages=pages, wants_logits=True))
        return live, chunks


def rows_engine(
    parts: tuple[Decoder, Exchange],
    limits: SchedulerLimits | None = None,
    num_pages: int = 128,
    draft_tokens: int = 0,
    prefix_cache: bool = True,
    most_rows: int | None = None,
) -> Engine:
    """As tests.shoals.engine_of, on rows; most_rows: beyond them chunks go the way of long ones."""
    decoder, exchange = parts
    limits = limits or SchedulerLimits()
    buffers = RowBuffers(
        decoder.config,
        most_rows=most_rows or limits.max_step_tokens,
        most_many=limits.max_step_tokens if most_rows else 0,
        most_draws=limits.max_sequences * (1 + draft_tokens),
        most_sequences=limits.max_sequences,
        context_tokens=CONTEXT,
        device=torch.device("cpu"),
        dtype=decoder.dtype,
    )
    cache = LatentCache(decoder.config, num_pages, decoder.dtype)
    runner = RowRunner(
        decoder.config,
        ReferenceRows(decoder, exchange, cache, buffers),
        buffers,
        num_pages=num_pages,
        cache_bytes_per_token=cache.bytes_per_token,
        draft_tokens=draft_tokens,
    )
    return Engine(runner, context_tokens=CONTEXT, limits=limits, prefix_cache=prefix_cache)
