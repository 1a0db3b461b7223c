"""Block-scaled FP8 against its definition, over ragged shapes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.blocks import scale_shape
from kernels.fp8 import dequantize_blocks, dequantize_blocks_reference, quantize_blocks

BLOCK = (128, 128)
FEW = st.integers(1, 40)
SIZES = st.one_of(FEW, st.sampled_from([127, 128, 129, 192, 255, 256, 300]))
# Rows, columns, block: the slow reference loops over blocks, so small ones meet small matrices.
RAGGED = st.one_of(
    st.tuples(SIZES, SIZES, st.sampled_from([BLOCK, (16, 32), (128, 64)])),
    st.tuples(FEW, FEW, st.sampled_from([(1, 1), (7, 5)])),
)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def random_fp8(rows, columns, seed):
    """Every one of the 256 codes may occur, NaN and the subnormals too."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    return codes.view(torch.float8_e4m3fn)


def random_scales(shape, seed):
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.rand(shape, generator=generator) * 10.0 ** torch.randint(-6, 2, shape, generator=generator)


def assert_same_bits(a, b):
    assert a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=20, deadline=None)
@given(ragged=RAGGED, dtype=DTYPES, seed=st.integers(0, 1000))
def test_dequantize_is_bit_exact_to_the_block_loop_for_every_ragged_shape(ragged, dtype, seed):
    rows, columns, block = ragged
    weight = random_fp8(rows, columns, seed)
    scales = random_scales(scale_shape((rows, columns), block), seed)
    expected = dequantize_blocks_reference(weight, scales, block, dtype)
    assert_same_bits(dequantize_blocks(weight, scales, block, dtype), expected)


def test_dequantize_multiplies_each_value_by_the_scale_of_its_block():
    weight, scales = random_fp8(576, 200, seed=1), random_scales((5, 2), seed=1)
    spread = np.kron(scales.numpy(), np.ones(BLOCK, dtype=np.float32))[:576, :200]
    expected = weight.float() * torch.from_numpy(spread)
    assert_same_bits(dequantize_blocks(weight, scales, BLOCK, torch.float32), expected)


def test_blocks_stay_128_rows_when_the_row_count_would_divide_evenly():
    """192 rows with two scale rows are blocks of 128 + 64, not 96 + 96."""
    weight = torch.ones(192, 16).to(torch.float8_e4m3fn)
    values = dequantize_blocks(weight, torch.tensor([[1.0], [2.0]]), BLOCK, torch.float32)
    assert values[:, 0].tolist() == [1.0] * 128 + [2.0] * 64


def test_scale_shape_of_the_released_ragged_projection():
    assert scale_shape((576, 7168), BLOCK) == (5, 56)


@settings(max_examples=20, deadline=None)
@given(ragged=RAGGED, exponent=st.integers(-20, 20), seed=st.integers(0, 1000))
def test_quantize_then_dequantize_is_within_half_a_step_of_e4m3(ragged, exponent, seed):
    rows, columns, block = ragged
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    quantized, scales = quantize_blocks(weight, block)
    values = dequantize_blocks(quantized, scales, block, torch.float32)
    # 3 mantissa bits: half a step is 1/16 of the value, 2^-10 scales among subnormals; 1.01 for fp32.
    steps = torch.kron(scales, torch.ones(block))[:rows, :columns] * 2.0**-10
    assert torch.all((values - weight).abs() <= 1.01 * torch.maximum(weight.abs() / 16, steps))
    assert quantized.float().abs().max() == 448.0


def test_quantize_gives_a_block_of_zeros_a_scale_that_divides():
    weight = torch.zeros(130, 130)
    weight[129, 129] = 3.0
    quantized, scales = quantize_blocks(weight, BLOCK)
    assert torch.all(scales > 0)
    assert torch.equal(dequantize_blocks(quantized, scales, BLOCK, torch.float32), weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_quantize_refuses_what_no_scale_can_hold(bad):
    weight = torch.ones(4, 4)
    weight[2, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_blocks(weight, BLOCK)


REFUSED = {
    "wide weight": (torch.ones(4, 4), torch.ones(1, 1), BLOCK, "weight is torch.float32"),
    "vector": (random_fp8(1, 4, 0)[0], torch.ones(1, 1), BLOCK, r"\[4\]: expected float8_e4m3fn \[out, in\]"),
    "too few scales": (random_fp8(129, 4, 0), torch.ones(1, 1), BLOCK, r"needs float32 \[2, 1\]"),
    "half scales": (random_fp8(4, 4, 0), torch.ones(1, 1).half(), BLOCK, "scale_inv is torch.float16"),
    "empty block": (random_fp8(4, 4, 0), torch.ones(1, 1), (0, 128), "two positive integers"),
    "other device": (random_fp8(4, 4, 0), torch.ones(1, 1, device="meta"), BLOCK, "on meta, weight on cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_dequantize_says_in_words_what_it_refuses(case):
    weight, scales, block, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        dequantize_blocks(weight, scales, block, torch.float32)


@pytest.mark.parametrize("weight", [torch.ones(4), torch.ones(2, 2, dtype=torch.int32)])
def test_quantize_says_in_words_what_it_refuses(weight):
    with pytest.raises(ValueError, match="expected a float matrix"):
        quantize_blocks(weight, BLOCK)
