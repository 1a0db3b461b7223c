"""The products of an attention layer for few rows, and what lies between them, in two calls.

Nothing here has bits of its own: the same loops as kernels/latent_rows.py and the same products as
kernels/rows.py, which many rows take one by one. It spares a step of few rows the Python and the small
allocations between them. Knows nothing of who attends to what.

Letters: T tokens  D hidden  A columns of the first product  X of the second  N heads  C latent dims
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.compiled import compiled
from kernels.crew import helper, run_job
from kernels.few_rows import PRODUCT, Lie, multiply_rows
from kernels.latent_rows import TokenNorms, Turns, keep_tokens_at, turn_heads_at
from kernels.panel import ADD, PANEL


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """Widths of one layer; rank: of the query latent, 0 without one."""

    hidden: int
    rank: int
    latent: int
    rotary: int
    nope: int
    value: int
    heads: int
    index_dims: int
    index_heads: int

    @property
    def down(self) -> int:
        return self.rank + self.latent + self.rotary + self.index_dims + self.index_heads

    @property
    def up(self) -> int:
        return self.heads * (self.nope + self.rotary) + self.index_heads * self.index_dims


class FewAttention:
    """One layer's weights for steps of few rows, by where they lie; who keeps this keeps the weights."""

    def __init__(self, shape: AttentionShape, norms: TokenNorms, *lies: Lie) -> None:
        self._shape = shape
        self._down, self._up, self._absorb, self._expand, self._out = lies
        self._norms = (
            0 if norms.query_K is None else norms.query_K.data_ptr(),
            norms.latent_C.data_ptr(),
            0 if norms.index_weight_I is None else norms.index_weight_I.data_ptr(),
            0 if norms.index_bias_I is None else norms.index_bias_I.data_ptr(),
        )
        self._eps = norms.eps, norms.index_eps

    def ask(
        self, h_TD: Tensor, turns: Turns, slots_T: Tensor, latent_SC: Tensor, index_SI: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(query_TNC, down_TA, up_TX), rotated; each token's latent and index key are in their slots.

        All contiguous, fp32 and int64 slots.
        """
        assert h_TD.is_contiguous() and h_TD.dtype == torch.float32, "rows go by address"
        shape, num_tokens = self._shape, h_TD.shape[0]
        query_TNC = torch.empty(num_tokens, shape.heads, shape.latent + shape.rotary)
        down_TA, up_TX = torch.empty(num_tokens, shape.down), torch.empty(num_tokens, shape.up)
        _ask(
            helper().board_at,
            h_TD.data_ptr(),
            num_tokens,
            shape.hidden,
            shape.rank,
            shape.latent,
            shape.rotary,
            shape.nope,
            shape.heads,
            shape.index_dims,
            shape.index_heads,
            *self._down,
            *self._up,
            *self._absorb,
            *self._norms,
            turns.cos_T1R.data_ptr(),
            turns.sin_T1R.data_ptr(),
            slots_T.data_ptr(),
            latent_SC.data_ptr(),
            index_SI.data_ptr(),
            *self._eps,
            down_TA.data_ptr(),
            up_TX.data_ptr(),
            query_TNC.data_ptr(),
            ADD,
            PRODUCT,
        )
        return query_TNC, down_TA, up_TX

    def answer(self, gathered_TNC: Tensor) -> Tensor:
        """[T, D] of what the queries have gathered, contiguous fp32 [T, N, latent]."""
        assert gathered_TNC.is_contiguous() and gathered_TNC.dtype == torch.float32, "rows go by address"
        shape, num_tokens = self._shape, gathered_TNC.shape[0]
        out_TD = torch.empty(num_tokens, shape.hidden)
        _answer(
            helper().board_at,
            gathered_TNC.data_ptr(),
            num_tokens,
            shape.hidden,
            shape.latent,
            shape.value,
            shape.heads,
            *self._expand,
            *self._out,
            out_TD.data_ptr(),
            ADD,
            PRODUCT,
        )
        return out_TD


@compiled("void(int64" + 31 * ", int64" + ", float64, float64" + 5 * ", int64" + ")")
def _ask(
    board_at: int,
    h_at: int,
    num_tokens: int,
    hidden: int,
    rank: int,
    latent: int,
    rotary: int,
    nope: int,
    heads: int,
    index_dims: int,
    index_heads: int,
    down_at: int,
    down_size: int,
    down_blocks: int,
    num_down: int,
    up_at: int,
    up_size: int,
    up_blocks: int,
    num_up: int,
    absorb_at: int,
    absorb_size: int,
    absorb_blocks: int,
    num_absorb: int,
    query_norm_at: int,
    latent_norm_at: int,
    key_norm_at: int,
    key_bias_at: int,
    cos_at: int,
    sin_at: int,
    slots_at: int,
    latent_at: int,
    index_at: int,
    eps: float,
    index_eps: float,
    down_out: int,
    up_out: int,
    query_at: int,
    add: int,
    job: int,
) -> None:
    down, head, dims = rank + latent + rotary + index_dims + index_heads, nope + rotary, latent + rotary
    up = heads * head + index_heads * index_dims
    multiply_rows(
        board_at,
        h_at,
        4 * hidden,
        num_tokens,
        down_at,
        down_size,
        hidden,
        down,
        down_blocks,
        num_down,
        down_out,
        add,
        job,
    )
    query = np.empty(num_tokens * max(1, rank), np.float32)
    keep_tokens_at(
        down_out,
        down,
        num_tokens,
        rank,
        latent,
        rotary,
        index_dims,
        query_norm_at,
        latent_norm_at,
        key_norm_at,
        key_bias_at,
        cos_at,
        sin_at,
        slots_at,
        latent_at,
        index_at,
        eps,
        index_eps,
        query.ctypes.data,
    )
    inner, x = (rank, query.ctypes.data) if rank else (hidden, h_at)
    multiply_rows(
        board_at, x, 4 * inner, num_tokens, up_at, up_size, inner, up, up_blocks, num_up, up_out, add, job
    )
    query[0] = 0.0  # by address it was in use until here
    run_job(
        board_at,
        job,
        heads * ((latent + PANEL - 1) // PANEL),
        up_out,
        4 * up,
        4 * head,
        num_tokens,
        absorb_at,
        absorb_size,
        nope,
        latent,
        absorb_blocks,
        num_absorb,
        query_at,
        4 * heads * dims,
        4 * dims,
        add,
    )
    own, to = up_out + 4 * nope, query_at + 4 * latent
    turn_heads_at(own, up, head, num_tokens, heads, rotary, cos_at, sin_at, to, heads * dims, dims)
    own = up_out + 4 * heads * head
    turn_heads_at(own, up, index_dims, num_tokens, index_heads, rotary, cos_at, sin_at, own, up, index_dims)


@compiled("void(int64" + 17 * ", int64" + ")")
def _answer(
    board_at: int,
    gathered_at: int,
    num_tokens: int,
    hidden: int,
    latent: int,
    value: int,
    heads: int,
    expand_at: int,
    expand_size: int,
    expand_blocks: int,
    num_expand: int,
    out_at: int,
    out_size: int,
    out_blocks: int,
    num_out: int,
    to: int,
    add: int,
    job: int,
) -> None:
    values, width = np.empty(num_tokens * heads * value, np.float32), heads * value
    run_job(
        board_at,
        job,
        heads * ((value + PANEL - 1) // PANEL),
        gathered_at,
        4 * heads * latent,
        4 * latent,
        num_tokens,
        expand_at,
        expand_size,
        latent,
        value,
        expand_blocks,
        num_expand,
        values.ctypes.data,
        4 * width,
        4 * value,
        add,
    )
    x, dx = values.ctypes.data, 4 * width
    multiply_rows(
        board_at, x, dx, num_tokens, out_at, out_size, width, hidden, out_blocks, num_out, to, add, job
    )
    values[0] = 0.0  # by address it was in use until here
