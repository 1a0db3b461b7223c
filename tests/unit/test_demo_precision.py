"""The rounding and the products of training, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demo.precision import ALONG_COLUMN, ALONG_ROW, BLOCK, Arithmetic, Precision
from kernels.fp8 import Tile

FP8 = Arithmetic(precision="fp8")
TILES = (ALONG_ROW, ALONG_COLUMN, BLOCK)

each_tile = pytest.mark.parametrize("tile", TILES, ids=("row", "column", "block"))
each_precision = pytest.mark.parametrize("precision", ("fp32", "bf16", "fp8"))


def rounded(x: Tensor, tile: Tile) -> Tensor:
    """The definition, tile by tile in fp64: no rounding but that to E4M3's steps, ties to even."""
    values = x.double().numpy().copy()
    for i in range(0, values.shape[0], tile.rows):
        for j in range(0, values.shape[1], tile.columns):
            at = (slice(i, i + tile.rows), slice(j, j + tile.columns))
            scale = 2.0 ** scale_exponent(float(np.abs(values[at]).max()))
            scaled = values[at] / scale
            exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(scaled), 2.0**-30))), -6)
            step = 2.0 ** (exponent - 3)
            values[at] = np.rint(scaled / step) * step * scale
    return torch.from_numpy(values)


def scale_exponent(largest: float) -> int:
    """Of the smallest power of two, 2^-126 at least, that brings `largest` to 448 or below."""
    if largest == 0:
        return -126
    fraction, exponent = math.frexp(largest)  # largest = fraction * 2^exponent; 448 = 0.875 * 2^9
    return max(-126, exponent - 9 + (fraction > 0.875))


def drawn(seed: int, rows: int, columns: int, spread: int, *, zeros: float = 0.2) -> Tensor:
    """Normal values times 2^-spread .. 2^spread, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.exp2(torch.randint(-spread, spread + 1, (rows, columns), generator=generator).float())
    return x * (torch.rand(rows, columns, generator=generator) >= zeros)


@each_tile
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    rows=st.sampled_from((1, 2, 127, 128, 129, 200)),
    columns=st.sampled_from((1, 48, 128, 131, 256)),
    spread=st.sampled_from((0, 3, 20, 60)),
    zeros=st.sampled_from((0.0, 0.2, 1.0)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_a_tile_is_rounded_to_e4m3_under_the_smallest_power_of_two_that_holds_it(
    tile: Tile, seed: int, rows: int, columns: int, spread: int, zeros: float, dtype: torch.dtype
) -> None:
    x = drawn(seed, rows, columns, spread, zeros=zeros).to(dtype)
    got = FP8.operand(x, tile)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got.double(), rounded(x, tile))  # the definition is exact, so bf16 lost nothing
    assert torch.equal(FP8.operand(got, tile), got)


@pytest.mark.parametrize("largest", (448.0, 448.0 * (1 + 2**-23), 449.0, 2.0**-120, 3e38, 1e-30))
def test_the_scale_at_the_edges(largest: float) -> None:
    x = torch.tensor([[largest, -largest / 3, largest / 4096, 0.0]])
    assert torch.equal(FP8.operand(x, ALONG_ROW).double(), rounded(x, ALONG_ROW))


def test_the_experts_of_a_stack_are_rounded_each_by_itself() -> None:
    stack = torch.stack([drawn(1, 48, 200, 3), drawn(2, 48, 200, 12)])
    assert torch.equal(FP8.operand(stack, BLOCK)[1], FP8.operand(stack[1], BLOCK))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    weight = drawn(3, 40, 200, 2)
    x = drawn(4, 6, 200, 2).bfloat16()
    other = x.clone()
    other[:5] = drawn(5, 5, 200, 20).bfloat16()
    assert torch.equal(FP8.linear(x, weight)[5], FP8.linear(other, weight)[5])


def factors(seed: int, size: int) -> Tensor:
    """2^-9 .. 2^9: side by side in a tile, the smaller values are lost to E4M3."""
    generator = torch.Generator().manual_seed(seed)
    return torch.exp2(torch.randint(-9, 10, (size,), generator=generator).float())


def seen(x: Tensor, tile: Tile, precision: Precision) -> Tensor:
    """An operand of the definition, fp64."""
    if precision == "fp8":
        return rounded(x, tile)
    return x.to(torch.bfloat16 if precision == "bf16" else torch.float32).double()


def assert_near(got: Tensor, expected: Tensor, precision: Precision) -> None:
    """Results round to bf16 at most twice, so a few parts in 256 of the largest are far too many."""
    assert float((got.double() - expected).abs().max() / expected.abs().max()) < (
        1e-6 if precision == "fp32" else 2**-7
    )


@each_precision
def test_linear_products_round_their_own_operands_forward_and_back(precision: Precision) -> None:
    arithmetic = Arithmetic(precision=precision)
    # Factors cancel in every product, so all terms count; which tiles are rounded then matters.
    of_m, of_k, of_n = factors(1, 150)[:, None], factors(2, 200), (factors(3, 48), 512 * factors(4, 130))
    x = (drawn(6, 150, 200, 1) * of_m * of_k).to(arithmetic.dtype).requires_grad_()
    weights = [(drawn(7, len(n), 200, 1) * n[:, None] / of_k).requires_grad_() for n in of_n]
    outs = arithmetic.linears(x, *weights)
    grads = [(drawn(9, 150, len(n), 1) / of_m / n).to(arithmetic.dtype) for n in of_n]
    torch.autograd.backward(outs, grads)
    plain_x = x.detach()
    grad_x = torch.zeros(x.shape, dtype=torch.float64)
    for weight, out, grad in zip(weights, outs, grads, strict=True):
        block = seen(weight.detach(), BLOCK, precision)
        assert out.dtype == arithmetic.dtype
        assert_near(out.detach(), seen(plain_x, ALONG_ROW, precision) @ block.t(), precision)
        grad_x += seen(grad, ALONG_ROW, precision) @ block
        columns = seen(grad, ALONG_COLUMN, precision).t() @ seen(plain_x, ALONG_COLUMN, precision)
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32
        assert_near(weight.grad, columns, "fp32" if precision == "fp32" else "bf16")
    assert x.grad is not None
    assert_near(x.grad, grad_x, precision)


@each_precision
def test_grouped_products_are_one_linear_per_expert(precision: Precision) -> None:
    arithmetic = Arithmetic(precision=precision)
    ends = [100, 100, 116, 160]  # the second expert has no rows
    of_m, of_k, of_n = factors(1, 160)[:, None], factors(2, 64), (factors(3, 48), 512 * factors(4, 48))
    x = (drawn(12, 160, 64, 1) * of_m * of_k).to(arithmetic.dtype).requires_grad_()
    stacks = [torch.stack([drawn(20 + expert, 48, 64, 1) for expert in range(4)]) for _ in of_n]
    weights = [(stack * n[:, None] / of_k).requires_grad_() for stack, n in zip(stacks, of_n, strict=True)]
    outs = arithmetic.grouped(x, torch.tensor(ends, dtype=torch.int32), *weights)
    grads = [(drawn(30, 160, 48, 1) / of_m / n).to(arithmetic.dtype) for n in of_n]
    torch.autograd.backward(outs, grads)
    plain_x = x.detach()
    grad_x = torch.zeros(x.shape, dtype=torch.float64)
    for weight, out, grad in zip(weights, outs, grads, strict=True):
        expected, grad_weight = torch.zeros(out.shape, dtype=torch.float64), []
        along_x, along_grad = (seen(one, ALONG_COLUMN, precision) for one in (plain_x, grad))
        for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            block = seen(weight.detach()[expert], BLOCK, precision)
            expected[start:end] = seen(plain_x, ALONG_ROW, precision)[start:end] @ block.t()
            grad_x[start:end] += seen(grad, ALONG_ROW, precision)[start:end] @ block
            grad_weight.append(along_grad[start:end].t() @ along_x[start:end])
        assert_near(out.detach(), expected, precision)
        assert weight.grad is not None
        assert_near(weight.grad, torch.stack(grad_weight), precision)
        assert not weight.grad[1].any()
    assert x.grad is not None
    assert_near(x.grad, grad_x, precision)


def test_in_fp32_gradients_are_those_of_the_plain_product() -> None:
    x, weight = drawn(13, 2 * 5, 70, 1).view(2, 5, 70), drawn(14, 30, 70, 1)
    ours = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    plain = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    Arithmetic(precision="fp32").linear(*ours).sin().sum().backward()  # type: ignore[no-untyped-call]
    (plain[0] @ plain[1].t()).sin().sum().backward()  # type: ignore[no-untyped-call]
    for one, other in zip(ours, plain, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad)


def test_a_frozen_operand_gets_no_gradient() -> None:
    x, weight = drawn(15, 4, 16, 1), drawn(16, 3, 16, 1).requires_grad_()
    Arithmetic(precision="fp32").linear(x, weight).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is None
    assert weight.grad is not None
    x.requires_grad_()
    Arithmetic(precision="fp32").linear(x, weight.detach()).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
