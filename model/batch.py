"""The tokens of one step, arranged for attention.

A chunk is some consecutive tokens of one sequence: one for decode, many for prefill; both take the same path.
Rows are padded to a multiple of what their operations want with tokens that write to the null page. Knows
nothing of weights.

Promise 1 rests here: the shape of a query's reduction depends on that query's own position alone. Queries are
grouped by padded key count (`padded_keys`), so that a query at position p meets the same shapes in prefill,
chunked prefill, decode and re-prefill, whoever shares the step.

Letters: T rows of the step (padded)  N tokens as given  D hidden  Q queries of a group  L padded keys
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.rows import ROW_MULTIPLE, padded_rows
from model.cache import PAGE_TOKENS

NULL_PAGE = 0  # never owned by a sequence: padding rows write here
SIZES_PER_OCTAVE = 4  # padding wastes at most a quarter of the keys,
MOST_PADDING = 2048  # and no more than these

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence.

    Pages: the sequence's page numbers, enough for start + len(token_ids).
    """

    token_ids: Sequence[int]
    start: int
    pages: Sequence[int]
    wants_logits: bool


@dataclass(frozen=True, kw_only=True)  # without slots: what only some need is made when asked for
class QueryGroup:
    """Queries whose reductions have one shape.

    rows: where the queries lie in the step. pages_BP: the pages of the keys, B = Q, or 1 when all queries
    belong to one sequence; padding repeats the null page. num_keys_Q: up to and with the query itself.
    sparse: each query sees more keys than the indexer keeps.
    """

    rows: slice
    pages_BP: Tensor
    num_keys_Q: Tensor
    sparse: bool

    @cached_property
    def slots_BL(self) -> Tensor:  # noqa: N802 - it stands for a field
        """The cache slots of these pages."""
        return torch.from_numpy(_slots_in(self.pages_BP.numpy()))

    @cached_property
    def hidden_QL(self) -> Tensor:  # noqa: N802 - it stands for a field
        """True where a key is after its query or padding."""
        return torch.arange(self.pages_BP.shape[1] * PAGE_TOKENS) >= self.num_keys_Q[:, None]

    @cached_property
    def bias_Q1L(self) -> Tensor:  # noqa: N802 - it stands for a field
        """The same as 0 and -inf."""
        return torch.zeros(self.hidden_QL.shape).masked_fill_(self.hidden_QL, float("-inf"))[:, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One step.

    rows_N: where the tokens of the chunks lie, in the order in which they were given.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    num_tokens: int
    groups: tuple[QueryGroup, ...]
    rows_N: Tensor

    def in_rows(self, values_ND: Tensor) -> Tensor:
        """[T, D]: what is given per token, laid out as the batch is; padding is 0."""
        placed_TD = values_ND.new_zeros(len(self.token_ids_T), values_ND.shape[1])
        return placed_TD.index_copy_(0, self.rows_N, values_ND)


def padded_keys(num_keys: int) -> int:
    """Key count after padding: whole pages, then SIZES_PER_OCTAVE per doubling, then MOST_PADDING apart."""
    octave = 1 << max(0, (num_keys - 1).bit_length() - 1)  # the largest power of two below num_keys
    step = min(max(PAGE_TOKENS, octave // SIZES_PER_OCTAVE), MOST_PADDING)
    return -(-num_keys // step) * step


def build_batch(
    chunks: Sequence[Chunk], *, index_topk: int | None, row_multiple: int = ROW_MULTIPLE
) -> Batch:
    """Arrange chunks as one step. index_topk: how many keys the indexer keeps, None without one."""
    group_keys = [_group_key(i, chunk, index_topk) for i, chunk in enumerate(chunks)]
    order = sorted(range(len(chunks)), key=group_keys.__getitem__)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[Integers] = []
    rows = [range(0)] * len(chunks)
    groups: list[QueryGroup] = []
    for key, members in groupby(order, key=group_keys.__getitem__):
        first_row = len(token_ids)
        together = list(members)
        for i in together:
            chunk = chunks[i]
            token_ids.extend(chunk.token_ids)
            span = range(chunk.start, chunk.start + len(chunk.token_ids))
            positions.extend(span)
            slots.append(_slots(chunk.pages, chunk.start, len(chunk.token_ids)))
            rows[i] = range(len(token_ids) - len(chunk.token_ids), len(token_ids))
        if key[0] == 0:
            groups.append(_decode_group([chunks[i] for i in together], first_row, index_topk))
        else:
            groups.extend(_prefill_groups(chunks[together[0]], first_row, index_topk))
    num_tokens = len(token_ids)
    padding = -num_tokens % row_multiple
    slots.append(np.arange(padding, dtype=np.int64) + NULL_PAGE * PAGE_TOKENS)
    return Batch(
        token_ids_T=torch.tensor(token_ids + [0] * padding),
        positions_T=torch.tensor(positions + [0] * padding),
        slots_T=torch.from_numpy(np.concatenate(slots)),
        num_tokens=num_tokens,
        groups=tuple(groups),
        rows_N=torch.tensor([row for own in rows for row in own]),
    )


def logit_places(chunks: Sequence[Chunk]) -> Tensor:
    """The place of the last token of each chunk that wants logits, among the tokens of all; int64."""
    ends = accumulate(len(chunk.token_ids) for chunk in chunks)
    return torch.tensor(
        [end - 1 for chunk, end in zip(chunks, ends, strict=True) if chunk.wants_logits], dtype=torch.int64
    )


def halve(chunks: Sequence[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
    """Two parts of about as many tokens, in the order given; the chunk in the middle may be cut.

    So a sequence may lie in both: the first part must be computed first, layer by layer.
    """
    num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
    left = padded_rows(num_tokens // 2)
    first, second = [], []
    for chunk in chunks:
        count = min(left, len(chunk.token_ids))
        left -= count
        if count == len(chunk.token_ids):
            first.append(chunk)
        elif not count:
            second.append(chunk)
        else:
            head, tail = chunk.token_ids[:count], chunk.token_ids[count:]
            first.append(replace(chunk, token_ids=head, wants_logits=False))
            second.append(replace(chunk, token_ids=tail, start=chunk.start + count))
    return first, second


def _group_key(place: int, chunk: Chunk, index_topk: int | None) -> tuple[int, int, int]:
    """Single tokens of equal shape share a group (0, ...); every longer chunk stands alone (1, ...)."""
    if len(chunk.token_ids) == 1:
        num_keys = chunk.start + 1
        return (0, int(_is_sparse(num_keys, index_topk)), padded_keys(num_keys))
    return (1, place, 0)


def _is_sparse(num_keys: int, index_topk: int | None) -> bool:
    return index_topk is not None and num_keys > index_topk


def _decode_group(chunks: Sequence[Chunk], first_row: int, index_topk: int | None) -> QueryGroup:
    num_pages = padded_keys(chunks[0].start + 1) // PAGE_TOKENS
    pages = np.stack([_pages(chunk.pages, 0, num_pages) for chunk in chunks])
    positions = np.array([chunk.start for chunk in chunks])
    sparse = _is_sparse(chunks[0].start + 1, index_topk)
    return _group(slice(first_row, first_row + len(chunks)), pages, positions, sparse)


def _prefill_groups(chunk: Chunk, first_row: int, index_topk: int | None) -> list[QueryGroup]:
    positions = range(chunk.start, chunk.start + len(chunk.token_ids))
    groups = []
    row = first_row
    for (num_keys, sparse), members in groupby(
        positions, key=lambda p: (padded_keys(p + 1), _is_sparse(p + 1, index_topk))
    ):
        own = np.fromiter(members, dtype=np.int64)
        pages = _pages(chunk.pages, 0, num_keys // PAGE_TOKENS)[None]
        groups.append(_group(slice(row, row + len(own)), pages, own, sparse))
        row += len(own)
    return groups


def _group(rows: slice, pages_BP: Integers, positions_Q: Integers, sparse: bool) -> QueryGroup:
    return QueryGroup(
        rows=rows,
        pages_BP=torch.from_numpy(pages_BP),
        num_keys_Q=torch.from_numpy(positions_Q + 1),
        sparse=sparse,
    )


def _slots(pages: Sequence[int], start: int, count: int) -> Integers:
    """Cache slots of positions start .. start + count."""
    first_page, end_page = start // PAGE_TOKENS, (start + count - 1) // PAGE_TOKENS + 1
    return _slots_in(_pages(pages, first_page, end_page))[start % PAGE_TOKENS :][:count]


def _slots_in(pages_P: Integers) -> Integers:
    """Every slot of these pages: the last dimension grows by PAGE_TOKENS."""
    slots = pages_P[..., None] * PAGE_TOKENS + np.arange(PAGE_TOKENS)
    return slots.reshape(*pages_P.shape[:-1], -1)


def _pages(pages: Sequence[int], first: int, end: int) -> Integers:
    """pages[first:end]; what is past the last is the null page."""
    own = pages[first:end]
    table = np.full(end - first, NULL_PAGE, dtype=np.int64)
    table[: len(own)] = own
    return table
