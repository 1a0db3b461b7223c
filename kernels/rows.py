"""Matrix products whose rows do not know each other.

The bits of a row must not depend on how many rows share the call (promise 1 of the design: greedy text does
not depend on batch mates, chunking or placement). BLAS libraries choose other code paths for few rows and
other K-blocking for many, so every product here runs on `[K, N]` row-major weights (the orientation whose
paths agree), padded to a multiple of ROW_MULTIPLE rows, at most ROW_TILE at a time. Measured in
docs/decisions/002-row-invariance.md and asserted by tests/unit/test_rows.py on the machine at hand. Weights
of 8-bit integers have exact sums and need none of this (kernels/int8.py); a few rows of fp32 are multiplied
without the BLAS, with its bits (kernels/few_rows.py). Knows nothing of layers.

Letters: R rows  K inner dimension  N outputs  H heads  G groups (experts)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.compiled import IS_COMPILED
from kernels.few_rows import Blocks, Lie, blocks_of, lie_of_product, most_few, product, product_by_head
from kernels.int8 import Int8Weight, grouped_int8_matmul, int8_matmul
from kernels.panel import Panels

ROW_MULTIPLE = 4
ROW_TILE = 128

Weight = Tensor | Panels | Int8Weight


def dtype_of_rows(dtype: torch.dtype) -> torch.dtype:
    """Of what is multiplied with weights of `dtype`, and of all that is no product's weight."""
    return torch.float32 if dtype == torch.int8 else dtype


def row_multiple(dtype: torch.dtype, device: torch.device) -> int:
    """How many rows of this kind keep their bits in every operation between products, not only in those."""
    is_loop = IS_COMPILED and device.type == "cpu" and dtype == torch.float32
    return 1 if is_loop else ROW_MULTIPLE


def padded_rows(num_rows: int) -> int:
    """The least multiple of ROW_MULTIPLE that holds num_rows, and never 0."""
    return max(ROW_MULTIPLE, -(-num_rows // ROW_MULTIPLE) * ROW_MULTIPLE)


def matmul_rows(x_RK: Tensor, weight_KN: Weight) -> Tensor:
    """x_RK @ weight_KN, each row's bits independent of R."""
    num_rows = x_RK.shape[0]
    if isinstance(weight_KN, Int8Weight):
        return int8_matmul(x_RK, weight_KN)
    if num_rows <= most_few() and (blocks := few_blocks(x_RK, weight_KN)) is not None:
        return product(x_RK, weight_KN, blocks)
    if missing := -num_rows % ROW_MULTIPLE:
        x_RK = torch.cat([x_RK, x_RK.new_zeros(missing, x_RK.shape[1])])
        return matmul_rows(x_RK, weight_KN)[:num_rows]
    weight_KN = whole(weight_KN)
    if num_rows <= ROW_TILE:
        return x_RK @ weight_KN
    out_RN = x_RK.new_empty(num_rows, weight_KN.shape[1])
    for start in range(0, num_rows, ROW_TILE):
        torch.mm(x_RK[start : start + ROW_TILE], weight_KN, out=out_RN[start : start + ROW_TILE])
    return out_RN


def matmul_heads(x_RHK: Tensor, weight_HKN: Tensor | Panels, out_RHN: Tensor) -> None:
    """Each head's rows times its own weight; rows and heads may lie apart. R as `row_multiple` wants it."""
    if x_RHK.dtype != torch.float32:  # batched: bf16's single products differ by the number of rows at N = 16
        assert isinstance(weight_HKN, Tensor), "only what multiplies fp32 lies in panels"
        out_RHN.copy_(torch.bmm(x_RHK.transpose(0, 1), weight_HKN).transpose(0, 1))
    elif len(x_RHK) <= most_few() and (blocks := few_blocks(x_RHK[:, 0], weight_HKN)) is not None:
        product_by_head(x_RHK, weight_HKN, blocks, out_RHN)
    else:
        for head in range(x_RHK.shape[1]):
            out_RHN[:, head] = matmul_rows(x_RHK[:, head], whole(weight_HKN, head))


def few_blocks(x_RK: Tensor, weight: Weight) -> Blocks | None:
    """How to cut the sums, where few rows can do without the BLAS. The weight may be one of each head."""
    if x_RK.dtype != torch.float32 or not x_RK.is_cpu or x_RK.stride(1) != 1:
        return None
    if isinstance(weight, Panels):
        return blocks_of(weight.inner, weight.outputs)
    if isinstance(weight, Int8Weight) or not weight.is_contiguous():
        return None
    return blocks_of(*weight.shape[-2:])


def lie_in_few(weight: Weight) -> Lie | None:
    """`lie_of_product` of a weight with which few fp32 rows can do without the BLAS."""
    if isinstance(weight, Int8Weight) or (isinstance(weight, Tensor) and weight.dtype != torch.float32):
        return None
    inner, outputs = (weight.inner, weight.outputs) if isinstance(weight, Panels) else weight.shape[-2:]
    is_here = isinstance(weight, Panels) or (weight.is_cpu and weight.is_contiguous())
    blocks = blocks_of(inner, outputs) if is_here else None
    return None if blocks is None else lie_of_product(weight, blocks)


def whole(weight: Tensor | Panels, head: int = 0) -> Tensor:
    """[K, N] as a BLAS wants it."""
    if isinstance(weight, Panels):
        return weight.whole(head)
    return weight if weight.dim() == 2 else weight[head]


def narrowed(weight: Tensor) -> Tensor | Panels:
    """An fp32 weight in half the memory, if no bit is lost and few rows can be multiplied with it so.

    [K, N], or one of each head: [H, K, N].
    """
    if not is_exact_in_half(weight) or blocks_of(*weight.shape[-2:]) is None:
        return weight
    return Panels.of(weight if weight.dim() == 3 else weight[None])


def is_exact_in_half(weight: Tensor) -> bool:
    """Whether it is fp32, and every value of it a bfloat16."""
    return weight.dtype == torch.float32 and torch.equal(weight.bfloat16().float(), weight)


def grouped_matmul_rows(x_RK: Tensor, weights_G: Sequence[Weight], rows_per_group: Sequence[int]) -> Tensor:
    """Consecutive rows times their group's weight; each row's bits as in matmul_rows alone.

    weights_G: [K, N] each. rows_per_group: length G, multiples of ROW_MULTIPLE above 0, summing to R. A loop,
    not one batched call: only the groups that have rows are touched.
    """
    rows = list(rows_per_group)
    if int8_G := [weight for weight in weights_G if isinstance(weight, Int8Weight)]:
        return grouped_int8_matmul(x_RK, int8_G, rows)
    floats_G = [weight for weight in weights_G if not isinstance(weight, Int8Weight)]
    parts = zip(torch.split(x_RK, rows), floats_G, strict=True)
    return torch.cat([matmul_rows(x_part, weight) for x_part, weight in parts])
