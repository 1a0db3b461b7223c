"""Two kernels of a few lines, to test what tests kernels.

They know nothing of the model.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cast_kernel(x_ptr: tl.tensor, out_ptr: tl.tensor, BLOCK: tl.constexpr) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at).to(out_ptr.dtype.element_ty))


@triton.jit
def dot_kernel(a_ptr: tl.tensor, b_ptr: tl.tensor, out_ptr: tl.tensor, SIZE: tl.constexpr) -> None:
    row = tl.arange(0, SIZE)
    at = row[:, None] * SIZE + row[None, :]
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    tl.store(out_ptr + at, product + tl.max(tl.zeros((SIZE,), tl.float32)))  # the sum calls another kernel
