"""The corrected interpreter and the ahead-of-time compiler say what a device would."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from tests.gpu import toy_kernels
from tests.gpu.ahead import Build, compile_ahead
from tests.gpu.interpreter import interpreting


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_casts_are_those_of_torch(dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(2000) * 30, torch.tensor([31.6, 464.0, 1e4, 1e-3, -1e-9, 0.0])])
    x = torch.cat([x, torch.zeros(2048 - len(x))])
    out = torch.full((2048,), float("nan")).to(dtype)
    with interpreting():
        toy_kernels.cast_kernel[(2,)](x, out, BLOCK=1024)
    expected = (x.clamp(-448, 448) if dtype == torch.float8_e4m3fn else x).to(dtype)
    assert torch.equal(out.float(), expected.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_products_are_those_of_torch(dtype: torch.dtype) -> None:
    a, b = (torch.randn(64, 64).to(dtype) for _ in range(2))
    out = torch.full((64, 64), float("nan"))
    with interpreting():
        toy_kernels.dot_kernel[(1,)](a, b, out, SIZE=64)
    torch.testing.assert_close(out, (a.double() @ b.double()).float(), rtol=1e-5, atol=1e-4)


def test_a_process_that_interpreted_can_still_compile() -> None:
    out = torch.zeros(64, 64)
    with interpreting():
        toy_kernels.dot_kernel[(1,)](torch.ones(64, 64), torch.ones(64, 64), out, SIZE=64)
    build = Build(
        module=toy_kernels.__name__,
        kernel="dot_kernel",
        types={"a_ptr": "*fp16", "b_ptr": "*fp16", "out_ptr": "*fp32"},
        constants={"SIZE": 64},
        num_warps=4,
    )
    compile_ahead(build).check(wgmma="m64n64k16 f16")
