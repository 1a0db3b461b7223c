"""Top-2048 on the device: the model's choice, exactly, ties and ragged rows and all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from kernels import select_topk as ops
from kernels.select_topk import TOPK, SelectConfig, select_topk, select_topk_reference
from kernels.topk import topk_lowest
from tests.gpu.ahead import Build, resources
from tests.gpu.attention_inputs import page_tables
from tests.gpu.interpreter import interpreting

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
INF = float("inf")


def rows_of(kind: str, columns: int, device: str = "cpu") -> Tensor:
    if kind == "normal":
        return torch.randn(1, columns, device=device)
    if kind == "ties":
        return torch.randint(-3, 4, (1, columns), device=device).float() * 0.5
    if kind == "zeros":
        return torch.randn(1, columns, device=device).relu() * (torch.rand(1, columns, device=device) < 0.1)
    if kind == "wide":
        return torch.exp(torch.randn(1, columns, device=device) * 20) * torch.randn(1, columns, device=device)
    special_C = torch.tensor([INF, -INF, 0.0, -0.0, 1e-45, 3e38, -3e38, 1.0], device=device)
    return special_C[torch.randint(0, 8, (1, columns), device=device)]


@pytest.mark.parametrize(
    ("columns", "chunk"), [(4096, 4096), (8192, 8192), (8192, 4096)], ids=["whole", "narrowed", "chunks"]
)
def test_selection_interpreted_is_the_reference(columns: int, chunk: int) -> None:
    kinds = ["normal", "ties", "zeros", "wide", "special"]
    logits_TL = torch.cat([rows_of(kind, columns) for kind in kinds])
    lengths_T = torch.tensor([columns, columns, columns - 77, 2049, columns - 1000], dtype=torch.int32)
    check(logits_TL, lengths_T, SelectConfig(chunk=chunk))


def test_many_chunks_keep_only_their_best() -> None:
    columns = 9 * 4096
    lengths_T = torch.tensor([columns - 100], dtype=torch.int32)
    check(rows_of("zeros", columns), lengths_T, SelectConfig(chunk=4096))


def test_short_rows_give_all_they_have() -> None:
    lengths_T = torch.tensor([0, 1, 64, 2047, 2048, 2049], dtype=torch.int32)
    check(torch.cat([rows_of("ties", 4096)] * 6), lengths_T, ops.CONFIG)


def check(logits_TL: Tensor, lengths_T: Tensor, config: SelectConfig) -> None:
    """Against the reference, with what lies behind each row poisoned."""
    columns = logits_TL.shape[1]
    at_L = torch.arange(columns, device=logits_TL.device)
    logits_TL = logits_TL.masked_fill(at_L >= lengths_T[:, None], torch.nan)
    pages_TP = page_tables(len(logits_TL), columns // 64, columns // 32, str(logits_TL.device))
    expected_TJ = select_topk_reference(logits_TL, lengths_T, pages_TP)
    if logits_TL.is_cuda:
        slots_TJ = select_topk(logits_TL, lengths_T, pages_TP, config=config)
    else:
        with interpreting():
            slots_TJ = select_topk(logits_TL, lengths_T, pages_TP, config=config)
    assert torch.equal(slots_TJ, expected_TJ)


def test_the_reference_chooses_as_the_model_does() -> None:
    logits_TL = torch.cat([rows_of("ties", 4096), rows_of("normal", 4096)])
    lengths_T, pages_TP = torch.full((2,), 4096, dtype=torch.int32), torch.arange(64).int().repeat(2, 1)
    assert torch.equal(
        select_topk_reference(logits_TL, lengths_T, pages_TP).long(), topk_lowest(logits_TL, TOPK)
    )


def test_nan_is_not_overlooked() -> None:
    logits_TL, lengths_T = rows_of("normal", 4096), torch.tensor([4096], dtype=torch.int32)
    logits_TL[0, 4000] = torch.nan
    pages_TP = torch.arange(64).int()[None]
    with interpreting():
        assert 4000 in select_topk(logits_TL, lengths_T, pages_TP)[0]


@pytest.mark.ahead
def test_every_configuration_fits_an_sm_90() -> None:
    """The largest blocks may spill a little, of what is written once; their rounds of counting hold all."""
    for build, taken in zip(BUILDS, resources(BUILDS), strict=True):
        assert taken.shared_bytes < 48 * 1024, f"{build}: keys should not move between threads"
        assert taken.stack_bytes <= (256 if build.num_warps == 16 else 0), f"{build} spills: {taken}"


def build_of(kernel: str, **constants: int) -> Build:
    config, block = ops.CONFIG, constants["BLOCK"]
    is_first = kernel == "narrow_kernel"
    pointers = ("lengths_ptr", "kept_ptr", "num_kept_ptr") + (() if is_first else ("pages_ptr", "out_ptr"))
    integers = ("num_pages",) if is_first else ("num_pages", "page_stride", "chunks")
    return Build(
        module=ops.__name__,
        kernel=kernel,
        types={"values_ptr": "*fp32"} | dict.fromkeys(pointers, "*i32") | dict.fromkeys(integers, "i32"),
        constants={"K": TOPK} | constants,
        num_warps=ops.num_warps_for(block, config.per_thread if is_first else config.choose_per_thread),
    )


BUILDS = (
    *(build_of("narrow_kernel", BLOCK=block, MOST=4096) for block in (8192, 16384, ops.CONFIG.chunk)),
    build_of("narrow_kernel", BLOCK=ops.CONFIG.chunk, MOST=2048),
    build_of("choose_kernel", BLOCK=4096, MOST=4096, IS_NARROWED=False),
    build_of("choose_kernel", BLOCK=4096, MOST=4096, IS_NARROWED=True),
    build_of("choose_kernel", BLOCK=16384, MOST=4096, IS_NARROWED=True),
    build_of("choose_kernel", BLOCK=32768, MOST=2048, IS_NARROWED=True),
)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("columns", [4096, 16384, 32768, 131072, 163840])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "wide", "special"])
@pytest.mark.parametrize("num_rows", [1, 64])
def test_selection_on_the_device_is_the_reference(kind: str, columns: int, num_rows: int) -> None:
    logits_TL = torch.cat([rows_of(kind, columns, "cuda") for _ in range(num_rows)])
    lengths_T = torch.randint(0, columns + 1, (num_rows,), dtype=torch.int32, device="cuda")
    lengths_T[0] = columns
    check(logits_TL, lengths_T, ops.CONFIG)
    check(logits_TL, lengths_T, SelectConfig(chunk=16384))
