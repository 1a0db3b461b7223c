"""Attention over pages of latents, each query for itself.

One loop for any number of queries on a CPU: a query meets its own keys in the order of their positions and no
others, so its bits depend on nothing else. Scores are dot products of whole latents; sums run key after key.
Knows nothing of layers, nor of how keys are chosen.

Letters: Q queries  N heads  C latent and rotary dims  V of them that are values  B = Q, or 1 for shared pages
         P pages  J chosen keys  S cache slots
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.compiled import (
    IS_COMPILED,
    LANES,
    Floats,
    call_at,
    compiled,
    exponential,
    floats,
    fma,
    indices,
    inlined,
)
from kernels.panel import ADD
from kernels.tile import VECTOR, dots

PAGE = 64  # keys that lie together
TOGETHER = 4  # rows of a tile, and keys
MOST_SHARING = 16  # queries that meet a page while it is in the cache,
MOST_SCORES = 1 << 17  # if so many scores hold theirs
_ZERO, _ONE, _LEAST = np.float32(0.0), np.float32(1.0), np.float32(-np.inf)

_one_dots, _many_dots = dots(1, TOGETHER), dots(TOGETHER, TOGETHER)


def can_attend(query_QNC: Tensor) -> bool:
    """Whether this is a CPU's fp32."""
    return IS_COMPILED and query_QNC.is_cpu and query_QNC.dtype == torch.float32


def attend_pages(
    query_QNC: Tensor,
    latent_SC: Tensor,
    pages_BP: Tensor,
    num_keys_Q: Tensor,
    out_QNV: Tensor,
    *,
    scale: float,
) -> None:
    """Each query over the first num_keys_Q of its pages. All contiguous; pages and counts int64."""
    num_queries, heads, dims = query_QNC.shape
    _attend_pages(
        query_QNC.data_ptr(),
        num_queries,
        heads,
        dims,
        out_QNV.shape[2],
        latent_SC.data_ptr(),
        pages_BP.data_ptr(),
        len(pages_BP),
        pages_BP.shape[1],
        num_keys_Q.data_ptr(),
        scale,
        out_QNV.data_ptr(),
        ADD,
    )


def attend_slots(
    query_QNC: Tensor, latent_SC: Tensor, slots_QJ: Tensor, out_QNV: Tensor, *, scale: float
) -> None:
    """Each query over its slots, in this order. All contiguous; slots int64."""
    num_queries, heads, dims = query_QNC.shape
    _attend_slots(
        query_QNC.data_ptr(),
        num_queries,
        heads,
        dims,
        out_QNV.shape[2],
        latent_SC.data_ptr(),
        slots_QJ.data_ptr(),
        slots_QJ.shape[1],
        scale,
        out_QNV.data_ptr(),
        ADD,
    )


@inlined
def _score(query: int, heads: int, dims: int, keys: int, count: int, scores: int, room: int) -> None:
    """scores[head, key] of a page; keys up to a multiple of TOGETHER, which a page has."""
    step, vectors = 4 * dims, dims // VECTOR
    tail = vectors * VECTOR
    for k in range(0, count, TOGETHER):
        own, n = keys + k * step, 0
        while n < heads and vectors:
            at = scores + 4 * (n * room + k)
            if n + TOGETHER <= heads:
                _many_dots(query + n * step, step, own, step, at, 4 * room, vectors)
                n += TOGETHER
            else:
                _one_dots(query + n * step, step, own, step, at, 4 * room, vectors)
                n += 1
        if tail == dims:
            continue
        for n in range(heads):
            row, out = floats(query + n * step, dims), floats(scores + 4 * (n * room + k), TOGETHER)
            for j in range(TOGETHER):
                key, total = floats(own + j * step, dims), out[j] if vectors else _ZERO
                for i in range(tail, dims):
                    total = fma(row[i], key[i], total)
                out[j] = total


@inlined
def _soften(scores: Floats, scale: np.float32, lanes: Floats) -> None:
    """softmax(scale * scores), in place; lanes: room for LANES partial results. NaN makes all NaN."""
    whole = len(scores) // LANES * LANES
    lanes[:] = _LEAST
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            value = scores[start + lane]
            lanes[lane] = value if value > lanes[lane] else lanes[lane]
    for i in range(whole, len(scores)):
        lanes[0] = scores[i] if scores[i] > lanes[0] else lanes[0]
    largest = _LEAST
    for lane in range(LANES):
        largest = lanes[lane] if lanes[lane] > largest else largest
    for i in range(len(scores)):
        scores[i] = exponential((scores[i] - largest) * scale)
    lanes[:] = _ZERO
    for start in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += scores[start + lane]
    for i in range(whole, len(scores)):
        lanes[0] += scores[i]
    total = _ZERO
    for lane in range(LANES):
        total += lanes[lane]
    share = _ONE / total
    for i in range(len(scores)):
        scores[i] *= share


@inlined
def _attend(
    query_at: int,
    num_queries: int,
    heads: int,
    dims: int,
    value_dims: int,
    keys_at: int,
    pages: NDArray[np.int64],
    counts: NDArray[np.int64],
    scale: np.float32,
    scores: Floats,
    out_at: int,
    add: int,
) -> None:
    """A few queries over pages that they share; scores: room for them, whole pages of each head."""
    most = 0
    for q in range(num_queries):
        most = max(most, counts[q])
    num_pages, lanes = (most + PAGE - 1) // PAGE, np.empty(LANES, np.float32)
    room, page_bytes = num_pages * PAGE, 4 * dims * PAGE
    for p in range(num_pages):
        keys = keys_at + pages[p] * page_bytes
        for q in range(num_queries):
            count, own = (
                min(PAGE, counts[q] - p * PAGE),
                scores.ctypes.data + 4 * (q * heads * room + p * PAGE),
            )
            if count > 0:
                _score(query_at + 4 * q * heads * dims, heads, dims, keys, count, own, room)
    for row in range(num_queries * heads):
        _soften(scores[row * room : row * room + counts[row // heads]], scale, lanes)
    floats(out_at, num_queries * heads * value_dims)[:] = _ZERO
    for p in range(num_pages):
        keys = keys_at + pages[p] * page_bytes
        for q in range(num_queries):
            count, own = (
                min(PAGE, counts[q] - p * PAGE),
                scores.ctypes.data + 4 * (q * heads * room + p * PAGE),
            )
            out = out_at + 4 * q * heads * value_dims
            if count > 0:
                own_step, key_step, out_step = 4 * room, 4 * dims, 4 * value_dims
                call_at(
                    add, (own, own_step, heads, keys, key_step, 4, value_dims, out, out_step, count, keys)
                )


@compiled("void(int64" + 9 * ", int64" + ", float64, int64, int64)")
def _attend_pages(
    query_at: int,
    num_queries: int,
    heads: int,
    dims: int,
    value_dims: int,
    keys_at: int,
    pages_at: int,
    num_tables: int,
    num_pages: int,
    counts_at: int,
    scale: float,
    out_at: int,
    add: int,
) -> None:
    counts, room = indices(counts_at, num_queries), num_pages * PAGE * heads
    sharing = max(1, min(MOST_SHARING, MOST_SCORES // room)) if num_tables == 1 else 1
    scores = np.empty(min(sharing, num_queries) * room, np.float32)
    for first in range(0, num_queries, sharing):
        own = min(sharing, num_queries - first)
        table = indices(pages_at + 8 * num_pages * (0 if num_tables == 1 else first), num_pages)
        _attend(
            query_at + 4 * first * heads * dims,
            own,
            heads,
            dims,
            value_dims,
            keys_at,
            table,
            counts[first : first + own],
            np.float32(scale),
            scores,
            out_at + 4 * first * heads * value_dims,
            add,
        )


@compiled("void(int64" + 7 * ", int64" + ", float64, int64, int64)")
def _attend_slots(
    query_at: int,
    num_queries: int,
    heads: int,
    dims: int,
    value_dims: int,
    keys_at: int,
    slots_at: int,
    num_slots: int,
    scale: float,
    out_at: int,
    add: int,
) -> None:
    """By a copy of the chosen keys, as if they were pages."""
    num_pages, counts = (num_slots + PAGE - 1) // PAGE, np.empty(1, np.int64)
    pages, counts[0] = np.arange(num_pages), num_slots
    scores = np.empty(heads * num_pages * PAGE, np.float32)
    keys = np.zeros(num_pages * PAGE * dims, np.float32)
    for q in range(num_queries):
        slots = indices(slots_at + 8 * q * num_slots, num_slots)
        for j in range(num_slots):
            keys[j * dims : (j + 1) * dims] = floats(keys_at + 4 * slots[j] * dims, dims)
        _attend(
            query_at + 4 * q * heads * dims,
            1,
            heads,
            dims,
            value_dims,
            keys.ctypes.data,
            pages,
            counts,
            np.float32(scale),
            scores,
            out_at + 4 * q * heads * value_dims,
            add,
        )
