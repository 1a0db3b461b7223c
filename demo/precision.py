"""FP8 training arithmetic: operands rounded to E4M3 in tiles.

DeepSeek-V3, arXiv 2412.19437, section 3.3: activations and gradients carry one scale per 1x128 group along
the summed dimension, weights one per 128x128 block, products accumulate in fp32, masters stay fp32. The
scales are powers of two (the released `scale_fmt` ue8m0), so a rounded operand is exact in bf16: the product
below has the very operands of an FP8 product, on any device that multiplies bf16. Knows nothing of layers.

Letters: M rows  K inputs  N outputs  E experts
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.fp8 import Tile, round_tiles

GROUP = 128
ALONG_ROW = Tile(1, GROUP)
ALONG_COLUMN = Tile(GROUP, 1)
BLOCK = Tile(GROUP, GROUP)
Precision = Literal["fp32", "bf16", "fp8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How a run multiplies. compiled: fuse the elementwise functions around the products (CUDA)."""

    precision: Precision
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16

    def linear(self, x: Tensor, weight_NK: Tensor) -> Tensor:
        """x @ weight.T; leading dimensions of x are kept, weight is an fp32 master."""
        return self.linears(x, weight_NK)[0]

    def linears(self, x: Tensor, *weights_NK: Tensor) -> tuple[Tensor, ...]:
        """x through several weights, rounded once and multiplied in one go."""
        flat = _Product.apply(x.reshape(-1, x.shape[-1]), None, self, *weights_NK)
        return tuple(out.view(*x.shape[:-1], -1) for out in flat)

    def grouped(self, x_MK: Tensor, ends_E: Tensor, *weights_ENK: Tensor) -> tuple[Tensor, ...]:
        """As `linears`, rows ends[e-1] .. ends[e] of x through expert e of each weight; ends_E is int32."""
        out: tuple[Tensor, ...] = _Product.apply(x_MK, ends_E, self, *weights_ENK)
        return out

    def fused(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function` as one kernel where that is possible."""
        return _compiled(function) if self.compiled else function

    def operand(self, x: Tensor, tile: Tile) -> Tensor:
        """x as a product sees it."""
        if self.precision != "fp8":
            return x.to(self.dtype)
        if x.is_cuda:
            from kernels.fp8_round import round_tiles_cuda  # needs Triton, which comes with CUDA builds alone

            return round_tiles_cuda(x, tile)
        return round_tiles(x, tile)


class _Product(torch.autograd.Function):
    """x @ cat(weights).T; each of a training step's three products rounds its own operands.

    The three: forward x[M, K] with weight[N, K] along K; the gradient of x along N; that of the weight along
    M.
    """

    @staticmethod
    def forward(
        ctx: Any, x_MK: Tensor, ends_E: Tensor | None, arithmetic: Arithmetic, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        rounded = torch.cat([arithmetic.operand(weight, BLOCK) for weight in weights], -2)
        ctx.save_for_backward(x_MK, rounded, ends_E)
        ctx.arithmetic, ctx.widths = arithmetic, [weight.shape[-2] for weight in weights]
        out = _product(arithmetic.operand(x_MK, ALONG_ROW), rounded.transpose(-2, -1), ends_E)
        return torch.split(out, ctx.widths, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_MK, weight, ends_E), arithmetic = ctx.saved_tensors, ctx.arithmetic
        # Groups of 128 along N must not reach from one weight into the next.
        along_row = torch.cat([arithmetic.operand(grad, ALONG_ROW) for grad in grads], -1)
        grad_x = _product(along_row, weight, ends_E).to(x_MK.dtype) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[3:]):
            return (grad_x, None, None, *(None for _ in grads))
        along_column = arithmetic.operand(torch.cat(grads, -1), ALONG_COLUMN)
        grad_weight = _product(along_column.t(), arithmetic.operand(x_MK, ALONG_COLUMN), ends_E, wide=True)
        return (grad_x, None, None, *torch.split(grad_weight.float(), ctx.widths, -2))


def _product(a: Tensor, b: Tensor, ends_E: Tensor | None, *, wide: bool = False) -> Tensor:
    """a @ b, accumulated in fp32; in groups of rows (or of the summed dimension) where ends are given."""
    if ends_E is not None:
        return F.grouped_mm(a, b, offs=ends_E)
    if wide and a.is_cuda and a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float() if wide else a @ b


_COMPILED: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    if function not in _COMPILED:
        # One kernel per shape, and a network has some twenty shapes per function.
        torch._dynamo.config.recompile_limit = 128
        _COMPILED[function] = torch.compile(function)
    return _COMPILED[function]
