"""FP8 with power-of-two scales, inside Triton kernels.

kernels.fp8.power_of_two_scale as device functions: exponents alone, so nothing is rounded but the value
itself. Knows nothing of layouts.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def scale_bits_of(largest):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """int32: the bits of the smallest power of two by which `largest` (fp32, >= 0) fits into E4M3."""
    bits = (largest.to(tl.int32, bitcast=True) + 0x1FFFFF) & 0x7F800000
    return tl.maximum(bits - (8 << 23), 1 << 23)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def inverse_of(scale_bits):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """fp32: one over the power of two with these bits."""
    return ((254 << 23) - scale_bits).to(tl.float32, bitcast=True)
