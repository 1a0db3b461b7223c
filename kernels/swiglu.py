"""SwiGLU of many rows, quantised.

Knows nothing of experts: rows nobody asked for are computed like the others.

Letters: P rows  F width
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels.fp8_rows import GROUP, Fp8Rows
from kernels.quantize import inverse_of, scale_bits_of

BLOCK_P = 16
NUM_WARPS = 4


def swiglu_quantize(gate_up: Tensor, out: Fp8Rows) -> None:
    """out = silu(gate) * up. gate_up: [P, 2F] bf16, gate first, or fp32 parts [S, P, 2F], added in order."""
    rows, width = out.values_RK.shape
    parts = gate_up.shape[0] if gate_up.dim() == 3 else 1
    if gate_up.shape[-2:] != (rows, 2 * width) or not gate_up.is_contiguous():
        raise ValueError(
            f"gate_up is {list(gate_up.shape)}: out {list(out.values_RK.shape)} needs twice its width"
        )
    out.check("out")
    _swiglu_quantize[(triton.cdiv(rows, BLOCK_P), width // GROUP)](
        gate_up,
        out.values_RK,
        out.scale_GR,
        rows,
        out.scale_GR.stride(0),
        F=width,
        PARTS=parts,
        BLOCK_P=BLOCK_P,
        num_warps=NUM_WARPS,
    )


def swiglu_reference(gate_up_PF: Tensor) -> Tensor:
    """fp64 [P, F] before it is quantised."""
    gate, up = gate_up_PF.double().chunk(2, dim=-1)
    return functional.silu(gate) * up


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator,unused-ignore]
def _swiglu_quantize(  # type: ignore[no-untyped-def]
    gate_up_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    scale_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    scale_stride,  # noqa: ANN001
    F: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = 128
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    f = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    inside = (p < rows)[:, None]
    at = gate_up_ptr + p[:, None].to(tl.int64) * (2 * F) + f[None, :]
    step = rows.to(tl.int64) * (2 * F)
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + F, mask=inside, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        gate += tl.load(at + part * step, mask=inside, other=0.0).to(tl.float32)
        up += tl.load(at + part * step + F, mask=inside, other=0.0).to(tl.float32)
    hidden = gate / (1.0 + tl.exp(-gate)) * up
    bits = scale_bits_of(tl.max(tl.abs(hidden), axis=1))
    values = (hidden * inverse_of(bits)[:, None]).to(tl.float8e4nv)
    tl.store(out_ptr + p[:, None].to(tl.int64) * F + f[None, :], values, mask=inside)
    scale_at = scale_ptr + tl.program_id(1) * scale_stride + p
    tl.store(scale_at, bits.to(tl.float32, bitcast=True), mask=p < rows)
