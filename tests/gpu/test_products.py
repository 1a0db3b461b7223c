"""Products in FP8 and bf16: right, whole, and blind to how many rows share the call."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from kernels import expert_gemm_many as many
from kernels.bf16_gemm import bf16_matmul, bf16_matmul_many, bf16_matmul_reference
from kernels.expert_gemm import (
    DOWN_CONFIGS,
    UP_CONFIGS,
    expert_down,
    expert_up,
    experts_reference,
    tile_rows_for,
)
from kernels.expert_mlp import expert_mlp
from kernels.fp8_gemm import CONFIGS, GemmConfig, config_for, fp8_matmul, fp8_matmul_reference, splits_for
from kernels.fp8_gemm_many import CONFIG as TRITON
from kernels.fp8_gemm_many import fp8_matmul_many
from kernels.fp8_rows import Fp8Rows, Fp8Weight, empty_rows
from kernels.routes import empty_routes, routes_of
from kernels.swiglu import swiglu_quantize
from tests.gpu.fp8_inputs import random_rows, random_weight, relative_error

NAN = float("nan")
ON_DEVICE = torch.cuda.is_available()


@pytest.mark.parametrize("rows", [1, 19, 70])
@pytest.mark.parametrize("splits", [1, 2])
def test_fp8_product_is_that_of_the_numbers_it_stands_for(
    device: torch.device, rows: int, splits: int
) -> None:
    x, weight = random_rows(rows, 512, device), random_weight((256, 512), device)
    shape = (splits, rows, 256) if splits > 1 else (rows, 256)
    out = torch.full(shape, NAN, device=device, dtype=torch.float32 if splits > 1 else torch.bfloat16)
    fp8_matmul(x, weight, out)
    total = out.sum(0) if splits > 1 else out
    exact = 1e-5 if not ON_DEVICE else 1e-3  # the matrix unit keeps about 14 bits of a sum of FP8 products
    assert relative_error(total, fp8_matmul_reference(x, weight)) < (exact if splits > 1 else 3e-3)


@pytest.mark.skipif(not ON_DEVICE, reason="needs a CUDA device: true widths")
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 33, 64, 100, 128, 129, 256, 1000])
@pytest.mark.parametrize(
    ("outputs", "inner"), [(2304, 7168), (32768, 1536), (7168, 16384), (7168, 18432)], ids=str
)
def test_fp8_product_at_true_widths(device: torch.device, rows: int, outputs: int, inner: int) -> None:
    x, weight = random_rows(rows, inner, device), random_weight((outputs, inner), device)
    out = torch.full((splits_for(outputs, inner), rows, outputs), NAN, device=device)
    fp8_matmul(x, weight, out)
    assert relative_error(out.sum(0), fp8_matmul_reference(x, weight)) < 2e-3
    other = torch.full_like(out, NAN)
    fp8_matmul(x, weight, other, config=config_for(rows))
    assert torch.equal(other, out), "the two kernels differ in bits"
    whole = torch.full((rows, outputs), NAN, dtype=torch.bfloat16, device=device)
    fp8_matmul(x, weight, whole)
    other = torch.full_like(whole, NAN)
    fp8_matmul(x, weight, other, config=config_for(rows))
    assert torch.equal(other, whole), "the two kernels differ in bits"
    for few in {1, rows // 2} - {0}:
        own = Fp8Rows(x.values_RK[:few].contiguous(), x.scale_GR[:, :few])
        alone = torch.full((out.shape[0], few, outputs), NAN, device=device)
        fp8_matmul(own, weight, alone)
        assert torch.equal(alone, out[:, :few]), f"bits of a row depend on {few} or {rows} rows"


def test_splits_fill_the_chip_and_divide_k() -> None:
    for outputs, inner in ((2304, 7168), (7168, 16384), (7168, 18432), (32768, 1536), (128, 256)):
        splits = splits_for(outputs, inner)
        assert inner // 128 % splits == 0
    assert splits_for(32768, 1536) == 1, "256 tiles are enough"


@pytest.mark.parametrize("rows", [3, 70])
def test_bf16_parts_add_up(device: torch.device, rows: int) -> None:
    x = torch.randn(rows, 512, device=device).to(torch.bfloat16)
    weight = torch.randn(128, 512, device=device).to(torch.bfloat16)
    out = torch.full((2, rows, 128), NAN, device=device)
    bf16_matmul(x, weight, out)
    assert relative_error(out.sum(0), bf16_matmul_reference(x, weight)) < 1e-5
    whole = torch.full((rows, 128), NAN, device=device)
    bf16_matmul_many(x, weight, whole, splits=2)
    assert torch.equal(out.sum(0), whole), "prefill and decode differ in bits"


@pytest.mark.parametrize("shared", [False, True])
def test_routes_for_fewer_rows_are_as_if_made_for_them(shared: bool) -> None:
    device = torch.device("cpu")
    many = empty_routes(9, 300, 3, 16, device, shared=shared).first(20)
    few = empty_routes(9, 20, 3, 16, device, shared=shared)
    assert (many.max_tiles, many.shared_tiles) == (few.max_tiles, few.shared_tiles)


@pytest.mark.parametrize("tile_rows", [16, 32, 64, 128])
def test_experts_give_every_pair_its_row(device: torch.device, tile_rows: int) -> None:
    rows, experts, hidden, width = (300, 8, 1024, 512) if ON_DEVICE else (70, 3, 256, 128)
    x = random_rows(rows, hidden, device)
    gate_up = random_weight((experts, 2 * width, hidden), device)
    down = random_weight((experts, hidden, width), device)
    chosen = torch.stack([torch.randperm(experts, device=device)[:2] for _ in range(rows)])
    chosen[0, 1] = -1
    chosen[chosen == 1] = 0  # an expert without rows
    chosen[chosen[:, 0] == chosen[:, 1], 1] = -1
    routes = routes_of(chosen, experts, tile_rows)
    between = empty_rows(rows * 2, width, device)
    out = torch.full((rows * 2, hidden), NAN, dtype=torch.bfloat16, device=device)
    if tile_rows == many.TILE_ROWS:
        many.expert_up_many(x, gate_up, routes, between)
        many.expert_matmul_many(between, down, routes, out, by_row=False)
    else:
        expert_mlp(x, gate_up, down, routes, between, out)
    wanted = experts_reference(x, gate_up, down, chosen)
    routed = chosen >= 0
    # The second rounding to FP8 falls the other way where what was before it differs a little.
    assert relative_error(out.view(rows, 2, hidden)[routed], wanted[routed]) < 2e-2
    assert out.view(rows, 2, hidden)[~routed].isnan().all(), "a pair without an expert was written"


@pytest.mark.skipif(not ON_DEVICE, reason="needs a CUDA device: bits of its matrix unit")
def test_bits_of_a_pair_do_not_depend_on_the_tile(device: torch.device) -> None:
    rows, experts, hidden, width = 300, 4, 7168, 2048
    x = random_rows(rows, hidden, device)
    gate_up = random_weight((experts, 2 * width, hidden), device)
    down = random_weight((experts, hidden, width), device)
    chosen = torch.randint(experts, (rows, 1), device=device)
    seen = {}
    for tile_rows in [*UP_CONFIGS, many.TILE_ROWS]:
        routes = routes_of(chosen, experts, tile_rows)
        for launches in ("two", "as the device likes", "again"):
            between = empty_rows(rows, width, device)
            between.scale_GR.fill_(NAN)
            out = torch.full((rows, hidden), NAN, dtype=torch.bfloat16, device=device)
            if tile_rows == many.TILE_ROWS and launches == "two":
                both = torch.full((rows, 2 * width), NAN, dtype=torch.bfloat16, device=device)
                many.expert_matmul_many(x, gate_up, routes, both, by_row=True, config=many.CONFIG)
                swiglu_quantize(both, between)
                many.expert_matmul_many(between, down, routes, out, by_row=False, config=many.CONFIG)
            elif tile_rows == many.TILE_ROWS:
                many.expert_up_many(x, gate_up, routes, between)
                many.expert_matmul_many(between, down, routes, out, by_row=False)
            elif launches == "two":
                expert_up(x, gate_up, routes, between)
                expert_down(between, down, routes, out)
            else:
                expert_mlp(x, gate_up, down, routes, between, out)
            assert not routes.done.any(), "the next launch would not wait"
            seen[tile_rows, launches] = out
    first = seen[16, "two"]
    assert not first.isnan().any()
    assert {form for form, out in seen.items() if not torch.equal(first, out)} == set()


@pytest.mark.skipif(not ON_DEVICE, reason="needs a CUDA device: programs that wait for each other")
def test_experts_in_one_launch_find_their_rows_every_time(device: torch.device) -> None:
    """Many experts with few rows, tiles of a shared one first; replayed, so that a race would show."""
    rows, experts, hidden, width = 60, 33, 2048, 1024
    x = random_rows(rows, hidden, device)
    gate_up = random_weight((experts, 2 * width, hidden), device)
    down = random_weight((experts, hidden, width), device)
    chosen = torch.stack([torch.randperm(experts - 1, device=device)[:4] for _ in range(rows)])
    chosen[:, 3] = experts - 1
    routes = routes_of(chosen, experts, 16, shared=True)
    between = empty_rows(rows * 4, width, device)
    wanted = torch.full((rows * 4, hidden), NAN, dtype=torch.bfloat16, device=device)
    expert_up(x, gate_up, routes, between)
    expert_down(between, down, routes, wanted)
    for _ in range(50):
        between.values_RK.view(torch.uint8).fill_(0x7F)  # NaN
        between.scale_GR.fill_(NAN)
        out = torch.full_like(wanted, NAN)
        expert_mlp(x, gate_up, down, routes, between, out)
        assert torch.equal(out, wanted)


@pytest.mark.parametrize("form", [None, TRITON], ids=["chosen", "triton"])
@pytest.mark.parametrize("splits", [1, 2])
def test_many_rows_give_what_few_give(device: torch.device, splits: int, form: GemmConfig | None) -> None:
    rows, outputs, inner = (300, 2304, 7168) if ON_DEVICE else (130, 128, 512)
    x, weight = random_rows(rows, inner, device), random_weight((outputs, inner), device)
    out = torch.full((rows, outputs), NAN, device=device)
    fp8_matmul_many(x, weight, out, splits=splits, config=form)
    assert relative_error(out, fp8_matmul_reference(x, weight)) < (1e-3 if ON_DEVICE else 1e-5)
    parts = torch.full((splits, rows, outputs), NAN, device=device)
    fp8_matmul(x, weight, parts)
    assert torch.equal(parts.sum(0) if splits > 1 else parts[0], out), "prefill and decode differ in bits"


@pytest.mark.skipif(not ON_DEVICE, reason="needs a CUDA device: true widths")
@pytest.mark.parametrize("rows", [1, 127, 128, 129, 1000, 5000])
@pytest.mark.parametrize(
    ("outputs", "inner"), [(384, 7168), (2304, 7168), (32768, 1536), (32768, 512), (7168, 16384)]
)
def test_many_rows_at_true_widths(device: torch.device, rows: int, outputs: int, inner: int) -> None:
    x, weight = random_rows(rows, inner, device), random_weight((outputs, inner), device)
    few = Fp8Rows(x.values_RK[-64:].contiguous(), x.scale_GR[:, -64:].contiguous())
    for splits in {1, splits_for(outputs, inner)}:
        out = torch.full((rows, outputs), NAN, device=device)
        fp8_matmul_many(x, weight, out, splits=splits)
        assert not out.isnan().any()
        parts = torch.empty(splits, len(few.values_RK), outputs, device=device)
        fp8_matmul(few, weight, parts)
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        assert torch.equal(total, out[-64:]), "prefill and decode differ in bits"
        narrow = torch.full((rows, outputs), NAN, dtype=torch.bfloat16, device=device)
        fp8_matmul_many(x, weight, narrow, splits=splits)
        assert torch.equal(out.bfloat16(), narrow)


def test_wrong_shapes_are_told_in_words(device: torch.device) -> None:
    x, weight = random_rows(4, 256, device), random_weight((128, 512), device)
    with pytest.raises(ValueError, match=r"x \[4, 256\] times weight \[128, 512\] does not make"):
        fp8_matmul(x, weight, torch.empty(4, 128, dtype=torch.bfloat16, device=device))
    with pytest.raises(ValueError, match="pad both dimensions"):
        Fp8Weight(torch.zeros(100, 256).to(torch.float8_e4m3fn), torch.ones(1, 2)).check("weight")


def test_every_size_of_tile_and_call_has_a_configuration() -> None:
    assert UP_CONFIGS.keys() == DOWN_CONFIGS.keys()
    assert {tile_rows_for(mean) for mean in (0.1, 4, 9, 33, 500)} <= UP_CONFIGS.keys()
    bounds = [most for most, _ in CONFIGS]
    assert bounds == sorted(bounds)
    assert bounds[-1] >= 1 << 20
