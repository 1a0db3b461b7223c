"""Chunks of prompts on one GPU: many rows at once through every layer.

The walk of a decode step with the kernels for many rows. Launched one by one, since a layer takes longer than
its launches; buffers are made once for the largest chunk, and what grows with rows times keys is made for
blocks of queries. In throughput mode tokens that see all there is attend by heads, over keys and values of
every head; all others, and all in exact mode, attend in latent space. Knows nothing of requests, embedding or
head.

Letters: R rows  D hidden  N heads  X columns of the up projection  J chosen keys  P pages of a sequence
         S keys of a sequence  L columns of logits  B rows of a block  M keys and values of all heads
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.absorb import absorb_value
from kernels.absorb_many import absorb_query_many
from kernels.bf16_gemm import bf16_matmul_many
from kernels.dense_mla import dense_mla
from kernels.expert_gemm_many import TILE_ROWS, expert_matmul_many, expert_up_many
from kernels.fp8_gemm import splits_for
from kernels.fp8_gemm_many import fp8_matmul_many
from kernels.fp8_rows import Fp8Rows, Fp8Weight
from kernels.hopper import has_gluon
from kernels.index_logits import IndexCache, index_logits_prefill
from kernels.index_query import index_query
from kernels.routes import Routes
from kernels.select_topk import TOPK, select_topk
from kernels.sort_tiles import sort_tiles
from kernels.sparse_mla import EXACT
from kernels.sparse_mla_prefill import sparse_mla_prefill
from kernels.unpage_latents import unpage_latents, unpage_rows
from model.cache import PAGE_TOKENS
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_walk import NARROW_SPLITS, Delta, Walk, WalkTables
from model.fp8_weights import Fp8Layer, Fp8Moe

# Queries that are gathered for at once: their latents, in and out, and shares take 0.8 MB each when exact.
MOST_QUERIES = 2048
MOST_LOGITS = 1 << 26  # of a block of queries: 256 MB
# Keys and values of every head cost a key 0.04 us, and spare a token 0.4 to 0.75 (H200, docs/log.md).
KEYS_PER_ROW = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Tokens of one sequence: rows first_row ... of the chunk, positions first_position ... .

    pages_P: int32, the sequence's pages in order, those of these tokens included.
    """

    first_row: int
    num_rows: int
    first_position: int
    pages_P: Tensor

    @property
    def end(self) -> int:
        """Keys that the last of them sees."""
        return self.first_position + self.num_rows

    @property
    def num_seeing_all(self) -> int:
        """How many tokens, the first of the span, have no more keys than they may choose."""
        return max(0, min(self.end, TOPK) - self.first_position)


class PrefillStep(Walk):
    """The walk for at most `most_rows` rows. exact: a row has the bits that decode would give it."""

    def __init__(
        self,
        config: ModelConfig,
        most_rows: int,
        tables: WalkTables,
        *,
        exact: bool = True,
    ) -> None:
        super().__init__(config, most_rows, tables, TILE_ROWS)
        device = tables.device
        assert config.indexer is not None, "latent_shape refuses a model without one"
        self._most_rows, self._largest, self._exact = most_rows, self._room, exact
        self._by_heads = not exact and has_gluon(device)
        heads, width = config.indexer.num_heads, self._shape.index
        self._index_query = torch.empty(most_rows, heads, width, dtype=torch.float8_e4m3fn, device=device)
        self._index_weights = torch.empty(most_rows, heads, device=device)
        self._query = torch.empty(
            min(most_rows, MOST_QUERIES),
            config.num_heads,
            config.latent_dim,
            dtype=torch.float16,
            device=device,
        )
        self._spans: Sequence[Span] = ()  # of the chunk that is on its way, like the next
        self._positions_R = torch.empty(0, dtype=torch.int32, device=device)

    def run(
        self,
        hidden_RD: Tensor,
        spans: Sequence[Span],
        layers: Sequence[Fp8Layer],
        cache: Fp8Cache,
        last_norm_D: Tensor,
        *,
        first_plane: int = 0,
        delta: Delta = None,
    ) -> Tensor:
        """bf16 [R, D] after the last norm, valid until the next run; hidden_RD is the residual by then.

        Spans stand in order of their rows and leave none out. Every token's key is in the cache before the
        first query of its layer looks.
        """
        rows = len(hidden_RD)
        check_spans(spans, rows, self._most_rows, len(self._cos))
        self._room, self._spans = self._largest.first(rows), spans
        self._positions_R, slots_R = places(spans, hidden_RD.device)
        return self._walk(
            hidden_RD,
            self._positions_R,
            slots_R,
            layers,
            cache,
            last_norm_D,
            first_plane=first_plane,
            delta=delta,
        )

    def _see(self, plane: int, up_RX: Tensor, heads_SRH: Tensor, kv_b: Fp8Weight, cache: Fp8Cache) -> None:
        rows = len(up_RX)
        index_query(
            up_RX,
            self._config.num_heads * self._config.qk_head_dim,
            heads_SRH,
            self._cos,
            self._sin,
            self._positions_R,
            self._hadamard,
            self._index_query[:rows],
            self._index_weights[:rows],
        )
        for span in self._spans:
            num_dense = rows_by_heads(span) if self._by_heads else 0
            if num_dense:
                self._attend_by_heads(plane, up_RX, kv_b, cache, span, num_dense)
            if num_dense < span.num_rows:
                self._attend_in_latent_space(plane, up_RX, kv_b, cache, span, num_dense)

    def _attend_by_heads(
        self, plane: int, up_RX: Tensor, kv_b: Fp8Weight, cache: Fp8Cache, span: Span, num_rows: int
    ) -> None:
        """The first tokens of a span, over keys and values of every head."""
        num_keys = span.first_position + num_rows
        pages_P = span.pages_P[: -(-num_keys // PAGE_TOKENS)]
        latents, rotary_SR = unpage_rows(cache.latents[plane], pages_P, num_keys)
        made_SM = up_RX.new_empty(num_keys, len(kv_b.values_NK))
        fp8_matmul_many(latents, kv_b, made_SM)
        rows_B = slice(span.first_row, span.first_row + num_rows)
        dense_mla(
            up_RX[rows_B],
            made_SM,
            rotary_SR,
            self._cos,
            self._sin,
            self._values(rows_B),
            first_position=span.first_position,
            scale=self._config.softmax_scale,
        )

    def _attend_in_latent_space(
        self, plane: int, up_RX: Tensor, kv_b: Fp8Weight, cache: Fp8Cache, span: Span, first_token: int
    ) -> None:
        """The tokens of a span from first_token on, over the latents that each chooses."""
        pages_P = span.pages_P[: -(-span.end // PAGE_TOKENS)]
        keys_SC = unpage_latents(cache.latents[plane], pages_P)
        for first, end in query_blocks(span, first_token):
            rows_B = slice(span.first_row + first, span.first_row + end)
            keys_BJ = self._choose(cache.keys[plane], span, first, end)
            query_BNC = self._query[: end - first]
            turn = (self._cos, self._sin, self._positions_R[rows_B])
            absorb_query_many(up_RX[rows_B], kv_b, *turn, query_BNC)
            gathered_BNC = sparse_mla_prefill(
                query_BNC,
                keys_BJ,
                keys_SC,
                scale=self._config.softmax_scale,
                splits=EXACT.splits if self._exact else 1,
            )
            absorb_value(gathered_BNC, kv_b, self._values(rows_B))

    def _values(self, rows_B: slice) -> Fp8Rows:
        """Where attention leaves what it found for these rows."""
        values = self._room.values
        return Fp8Rows(values.values_RK[rows_B], values.scale_GR[:, rows_B])

    def _choose(self, keys: IndexCache, span: Span, first: int, end: int) -> Tensor:
        """int32 [B, J]: positions that tokens first ... end of the span see; -1 behind them."""
        device = self._index_query.device
        first_length = span.first_position + first + 1
        last_length = span.first_position + end
        lengths_B = torch.arange(first_length, last_length + 1, dtype=torch.int32, device=device)
        if last_length <= TOPK:  # all there are
            every_J = torch.arange(TOPK, dtype=torch.int32, device=device)
            return torch.where(every_J[None] < lengths_B[:, None], every_J[None], -1)
        num_pages = -(-last_length // PAGE_TOKENS)
        rows_B = slice(span.first_row + first, span.first_row + end)
        logits_BL = index_logits_prefill(
            self._index_query[rows_B],
            self._index_weights[rows_B],
            keys,
            span.pages_P[:num_pages],
            first_length=first_length,
        )
        in_order_BP = torch.arange(num_pages, dtype=torch.int32, device=device).expand(end - first, -1)
        return select_topk(logits_BL, lengths_B, in_order_BP)

    def _narrow(self, weight_ND: Tensor) -> Tensor:
        normed_RD = self._room.normed_RD
        out_RN = normed_RD.new_empty(len(normed_RD), len(weight_ND), dtype=torch.float32)
        bf16_matmul_many(normed_RD, weight_ND, out_RN, splits=NARROW_SPLITS if self._exact else 1)
        return out_RN[None]

    def _sum(self, x: Fp8Rows, weight: Fp8Weight) -> Tensor:
        outputs, inner = weight.values_NK.shape
        out_RN = x.scale_GR.new_empty(len(x.values_RK), outputs)
        fp8_matmul_many(x, weight, out_RN, splits=splits_for(outputs, inner) if self._exact else 1)
        return out_RN[None]

    def _whole(self, x: Fp8Rows, weight: Fp8Weight) -> Tensor:
        out_RN = self._room.normed_RD.new_empty(len(x.values_RK), len(weight.values_NK))
        fp8_matmul_many(x, weight, out_RN)
        return out_RN

    def _experts(self, weights: Fp8Moe, routes: Routes) -> None:
        room = self._room
        sort_tiles(routes)
        expert_up_many(room.normed, weights.gate_up, routes, room.between)
        expert_matmul_many(room.between, weights.down, routes, room.pairs_PD, by_row=False)


def check_spans(spans: Sequence[Span], rows: int, most_rows: int, num_positions: int) -> None:
    """Raises ValueError unless the spans are all the rows, in order, and fit."""
    if rows > most_rows:
        raise ValueError(f"{rows} rows: made for at most {most_rows}")
    next_row = 0
    for span in spans:
        if span.first_row != next_row or span.num_rows < 1:
            raise ValueError(f"a span of {span.num_rows} rows begins at row {span.first_row}, not {next_row}")
        if span.end > min(num_positions, len(span.pages_P) * PAGE_TOKENS):
            raise ValueError(
                f"a span ends at position {span.end}: it has {len(span.pages_P)} pages and the walk "
                f"{num_positions} positions"
            )
        next_row += span.num_rows
    if next_row != rows:
        raise ValueError(f"{len(spans)} spans have {next_row} rows: the chunk has {rows}")


def places(spans: Sequence[Span], device: torch.device) -> tuple[Tensor, Tensor]:
    """(position, slot) of every row, int32."""
    positions, slots = [], []
    for span in spans:
        at = torch.arange(span.first_position, span.end, dtype=torch.int32, device=device)
        positions.append(at)
        slots.append(span.pages_P[at // PAGE_TOKENS] * PAGE_TOKENS + at % PAGE_TOKENS)
    return torch.cat(positions), torch.cat(slots)


def rows_by_heads(span: Span) -> int:
    """How many tokens, the first of the span, should attend by heads: as many as can, or none if too few."""
    num_rows = span.num_seeing_all
    return num_rows if num_rows * KEYS_PER_ROW >= span.first_position + num_rows else 0


def query_blocks(span: Span, first: int = 0) -> list[tuple[int, int]]:
    """Tokens (first, end) of the span that are gathered for at once: bounded queries, bounded logits.

    first: the token to begin with.
    """
    blocks = []
    while first < span.num_rows:
        most = min(MOST_QUERIES, span.num_rows - first)
        if first + span.first_position < TOPK:  # those who see all they have need no logits
            most = min(most, TOPK - first - span.first_position)
        columns = -(-(span.first_position + first + most) // PAGE_TOKENS) * PAGE_TOKENS
        end = first + min(most, max(1, MOST_LOGITS // columns))
        blocks.append((first, end))
        first = end
    return blocks
