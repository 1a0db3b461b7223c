"""Attention over keys and values of every head: the reference's numbers, and what latent space gives.

The interpreter knows no Gluon: without a device that kernel runs on threads (tests/gpu/gluon_threads.py), at
few heads, and is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.experimental.gluon", reason="needs Triton with Gluon")

from kernels import dense_mla as dense
from kernels.absorb import absorb_query_reference, absorb_value, absorb_value_reference
from kernels.absorb_many import absorb_query_many
from kernels.dense_mla import dense_mla, dense_mla_reference, turn_queries
from kernels.dense_mla_gluon import dense_mla_kernel
from kernels.fp8_gemm_many import fp8_matmul_many
from kernels.fp8_rows import Fp8Rows, empty_rows
from kernels.sparse_mla_prefill import sparse_mla_prefill, sparse_mla_prefill_reference
from kernels.unpage_latents import unpage_latents, unpage_rows, unpage_rows_reference
from tests.gpu.ahead import Build, operand_of, resources
from tests.gpu.attention_inputs import NAN, latent_cache
from tests.gpu.fp8_inputs import random_weight
from tests.gpu.gluon_threads import on_threads
from tests.gpu.interpreter import interpreting

SCALE = 192**-0.5
HEADS = 128
BEHIND = 300  # keys that nobody may see
# Of a head's values by norms: rounded to FP8 2.7e-2, with weights, keys and values in bf16 4e-3.
TOLERANCE = 0.05
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """As dense_mla takes them; out is full of what no kernel leaves, with room behind the last row."""

    up_RX: Tensor
    made_SM: Tensor
    rotary_SR: Tensor
    cos_TP: Tensor
    sin_TP: Tensor
    out: Fp8Rows


def inputs(rows: int, first_position: int, heads: int, device: str) -> Inputs:
    num_keys = first_position + rows
    made_SM = torch.randn(num_keys + BEHIND, heads * 256, device=device).bfloat16()
    rotary_SR = torch.randn(num_keys + BEHIND, 64, device=device).half()
    made_SM[num_keys:], rotary_SR[num_keys:] = NAN, NAN
    cos_TP, sin_TP = angles(num_keys, device)
    room = empty_rows(rows + 64, heads * 128, torch.device(device))
    room.values_RK.view(torch.uint8).fill_(0x7F)  # NaN
    room.scale_GR.fill_(NAN)
    return Inputs(
        up_RX=torch.randn(rows, heads * 192 + 256, device=device).bfloat16(),
        made_SM=made_SM[:num_keys],
        rotary_SR=rotary_SR[:num_keys],
        cos_TP=cos_TP,
        sin_TP=sin_TP,
        out=Fp8Rows(room.values_RK[:rows], room.scale_GR[:, :rows]),
    )


def angles(num_positions: int, device: str) -> tuple[Tensor, Tensor]:
    turns_TP = torch.rand(num_positions, 32, device=device) * 6.3
    return turns_TP.cos(), turns_TP.sin()


def referred(given: Inputs, first_position: int) -> Tensor:
    """fp64 [R, N * 128], by sixteen heads at a time: all of them at 2,048 rows are 13 GB."""
    shares = zip(
        given.up_RX[:, : given.made_SM.shape[1] // 256 * 192].split(16 * 192, 1),  # type: ignore[no-untyped-call]
        given.made_SM.split(16 * 256, 1),  # type: ignore[no-untyped-call]
        strict=True,
    )
    found = [
        dense_mla_reference(
            up_RX,
            made_SM,
            given.rotary_SR,
            given.cos_TP,
            given.sin_TP,
            first_position=first_position,
            scale=SCALE,
        )
        for up_RX, made_SM in shares
    ]
    return torch.cat(found, 1)


def check_near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Every head of every row, by norms; says which are not."""
    found_RNV, expected_RNV = (values.double().view(len(values), -1, 128) for values in (found, expected))
    error_RN = ((found_RNV - expected_RNV).norm(dim=-1) / expected_RNV.norm(dim=-1)).nan_to_num(nan=9.0)
    wrong = (error_RN > tolerance).nonzero()
    rows, heads = (sorted(set(wrong[:, axis].tolist())) for axis in (0, 1))
    assert not len(wrong), (
        f"{len(wrong)} of {error_RN.numel()} beyond {tolerance}, the worst {float(error_RN.max()):.3g}, the "
        f"mean {float(error_RN.mean()):.3g}; {len(rows)} rows: {rows[:10]} to {rows[-1]}; "
        f"{len(heads)} heads: {heads[:10]} to {heads[-1]}"
    )


def check_untouched(out: Fp8Rows) -> None:
    """Behind the last row, where another span's rows would be."""
    (rows, width), stride = out.values_RK.shape, out.scale_GR.stride(0)
    behind = out.values_RK.view(torch.uint8).as_strided((stride - rows, width), (width, 1), rows * width)
    assert (behind == 0x7F).all(), "values were written behind the last row"
    scales = out.scale_GR.as_strided((len(out.scale_GR), stride), (stride, 1))
    assert scales[:, rows:].isnan().all(), "scales were written behind the last row"


def attend(given: Inputs, first_position: int) -> Tensor:
    """fp32 [R, N * 128] of the values in FP8."""
    dense_mla(
        given.up_RX,
        given.made_SM,
        given.rotary_SR,
        given.cos_TP,
        given.sin_TP,
        given.out,
        first_position=first_position,
        scale=SCALE,
    )
    check_untouched(given.out)
    return given.out.float()


@pytest.mark.parametrize("first_position", [0, 5])
def test_the_reference_is_what_latent_space_gives(first_position: int) -> None:
    rows, heads, cpu = 9, 4, torch.device("cpu")
    num_keys = first_position + rows
    cache, kv_b = latent_cache(64), random_weight((heads * 256, 512), cpu)
    up_RX = torch.randn(rows, heads * 192).bfloat16()
    (cos_TP, sin_TP), pages_P = angles(num_keys, "cpu"), torch.zeros(1, dtype=torch.int32)
    latents, rotary_SR = unpage_rows_reference(cache, pages_P, num_keys)
    latent_SC = latents.float().double()
    made_SM = latent_SC @ kv_b.float().double().t()
    ours_RV = dense_mla_reference(
        up_RX, made_SM, rotary_SR, cos_TP, sin_TP, first_position=first_position, scale=SCALE
    )

    query_RNC = up_RX.double().view(rows, heads, 192)
    absorbed_RNC = absorb_query_reference(query_RNC[..., :128], kv_b)
    cos_R1P, sin_R1P = (table[first_position:, None].double() for table in (cos_TP, sin_TP))
    first, second = query_RNC[..., 128:].chunk(2, -1)
    turned = (first * cos_R1P - second * sin_R1P, second * cos_R1P + first * sin_R1P)
    slots_RJ = torch.arange(num_keys, dtype=torch.int32).expand(rows, -1)
    slots_RJ = slots_RJ.where(slots_RJ <= first_position + torch.arange(rows)[:, None], -1)
    gathered_RNC = sparse_mla_prefill_reference(
        torch.cat([absorbed_RNC, *turned], -1),
        slots_RJ,
        torch.cat([latent_SC, rotary_SR.double()], -1),
        scale=SCALE,
    )
    torch.testing.assert_close(ours_RV, absorb_value_reference(gathered_RNC, kv_b), rtol=1e-9, atol=1e-9)


def test_queries_are_turned_by_their_positions(device: torch.device) -> None:
    up_RX = torch.randn(7, 32 * 192 + 128, device=device).bfloat16()
    cos_TP, sin_TP = angles(10, device.type)
    turned_RY = turn_queries(up_RX, cos_TP, sin_TP, first_position=3, heads=32)
    first, second = up_RX[:, : 32 * 192].float().view(7, 32, 192)[..., 128:].chunk(2, -1)
    cos_R1P, sin_R1P = cos_TP[3:, None], sin_TP[3:, None]
    expected = torch.cat([first * cos_R1P - second * sin_R1P, second * cos_R1P + first * sin_R1P], -1)
    torch.testing.assert_close(turned_RY.float(), expected.flatten(1), rtol=2**-10, atol=2**-14)


@pytest.mark.parametrize("num_keys", [1, 64, 100, 192])
def test_rows_leave_their_pages_as_they_are(device: torch.device, num_keys: int) -> None:
    cache = latent_cache(256, device.type)
    pages_P = torch.tensor([2, 0, 3], dtype=torch.int32, device=device)
    latents, rotary_SR = unpage_rows(cache, pages_P, num_keys)
    expected, expected_SR = unpage_rows_reference(cache, pages_P, num_keys)
    latents.check("latents")
    assert torch.equal(latents.values_RK.view(torch.uint8), expected.values_RK.view(torch.uint8))
    assert torch.equal(latents.scale_GR, expected.scale_GR)
    assert torch.equal(rotary_SR, expected_SR)


def test_what_does_not_fit_is_refused_with_words() -> None:
    given = inputs(5, 3, 32, "cpu")
    with pytest.raises(ValueError, match="5 rows from position 4 on see other than 8 keys"):
        attend(given, 4)
    with pytest.raises(ValueError, match="65 keys of 1 pages"):
        unpage_rows(latent_cache(64), torch.zeros(1, dtype=torch.int32), 65)


@pytest.mark.parametrize(
    ("rows", "first_position"),
    [(1, 0), (1, 128), (64, 64), (65, 63), (40, 88), (70, 190), (300, 0), (257, 130)],
)
def test_on_threads_it_is_the_reference(
    rows: int, first_position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tile, mask and phase of the kernel, at few heads and programs."""
    torch.manual_seed(rows)
    given = inputs(rows, first_position, 32, "cpu")
    monkeypatch.setattr(dense, "multiprocessors", lambda _device: 5)
    with interpreting(), on_threads(dense_mla_kernel) as kernel:
        monkeypatch.setattr(dense, "dense_mla_kernel", kernel)
        found = attend(given, first_position)
    check_near(found, referred(given, first_position))


def dense_build() -> Build:
    return Build(
        module="kernels.dense_mla_gluon",
        kernel="dense_mla_kernel",
        types={
            "query_desc": operand_of(64, 128, "bf16"), "turned_desc": operand_of(64, 64, "fp16"),
            "made_desc": operand_of(128, 128, "bf16"), "rotary_desc": operand_of(128, 64, "fp16"),
            "out_ptr": "*fp8e4nv", "out_scale_ptr": "*fp32", "out_scale_stride": "i32", "rows": "i32",
            "first_position": "i32", "scale_log2": "fp32",
        },
        constants={"HEADS": HEADS},
        num_warps=4,
    )  # fmt: skip


@pytest.mark.ahead
def test_it_fits_an_sm_90() -> None:
    [taken] = resources([dense_build()])
    taken.check(wgmma="m64n128k16 bf16")
    assert "m64n128k16 f16" in taken.wgmma, "the rotary part has more bits than bf16"


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(
    ("rows", "first_position"),
    [
        (1, 0), (1, 127), (1, 2047), (17, 700), (63, 65), (64, 64), (65, 63), (128, 0), (129, 0), (70, 190),
        (200, 1848),
        (385, 1), (640, 1000), (1000, 0), (1000, 1048), (1919, 129), (2048, 0),
    ],
)  # fmt: skip
def test_on_the_device_it_is_the_reference(rows: int, first_position: int) -> None:
    torch.manual_seed(rows)
    given = inputs(rows, first_position, HEADS, "cuda")
    found = attend(given, first_position)
    check_near(found, referred(given, first_position))
    again = found.clone()
    assert torch.equal(attend(given, first_position), again), "two runs differ"


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("rows", "first_position"), [(1, 0), (300, 0), (700, 1348), (2048, 0)])
def test_by_heads_is_what_latent_space_gives(rows: int, first_position: int) -> None:
    """From the cache on, by both ways that prefill has."""
    torch.manual_seed(rows)
    num_keys, cuda = first_position + rows, torch.device("cuda")
    cache, kv_b = latent_cache(4096, "cuda"), random_weight((HEADS * 256, 512), cuda)
    pages_P = torch.randperm(64, device=cuda).int()[: -(-num_keys // 64)]
    up_RX = torch.randn(rows, HEADS * 192 + 8192, device=cuda).bfloat16()
    cos_TP, sin_TP = angles(num_keys, "cuda")

    latents, rotary_SR = unpage_rows(cache, pages_P, num_keys)
    made_SM = torch.full((num_keys, HEADS * 256), NAN, dtype=torch.bfloat16, device=cuda)
    fp8_matmul_many(latents, kv_b, made_SM)
    by_heads = empty_rows(rows, HEADS * 128, cuda)
    dense_mla(up_RX, made_SM, rotary_SR, cos_TP, sin_TP, by_heads, first_position=first_position, scale=SCALE)

    query_RNC = torch.empty(rows, HEADS, 576, dtype=torch.float16, device=cuda)
    positions_R = torch.arange(first_position, num_keys, dtype=torch.int32, device=cuda)
    absorb_query_many(up_RX, kv_b, cos_TP, sin_TP, positions_R, query_RNC)
    every_J = torch.arange(2048, dtype=torch.int32, device=cuda)
    slots_RJ = torch.where(every_J <= positions_R[:, None], every_J, -1)
    gathered_RNC = sparse_mla_prefill(query_RNC, slots_RJ, unpage_latents(cache, pages_P), scale=SCALE)
    in_latent_space = empty_rows(rows, HEADS * 128, cuda)
    absorb_value(gathered_RNC, kv_b, in_latent_space)
    check_near(by_heads.float(), in_latent_space.float(), 2 * TOLERANCE)
