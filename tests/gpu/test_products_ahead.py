"""Every shipped configuration of the products fits an sm_90: no spill, FP8's own wgmma."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="needs Triton")

from kernels import expert_gemm_many, fp8_gemm_many
from kernels.expert_gemm import DOWN_CONFIGS, UP_CONFIGS
from kernels.fp8_gemm import CONFIGS
from tests.gpu.ahead import Build, resources

FP8, FP32, INT = "*fp8e4nv", "*fp32", "i32"
GEMM = {
    "x_ptr": FP8,
    "x_scale_ptr": FP32,
    "w_ptr": FP8,
    "w_scale_ptr": FP32,
    "rows": INT,
    "x_scale_stride": INT,
}
EXPERT = {
    "x_ptr": FP8, "x_scale_ptr": FP32, "w_ptr": FP8, "w_scale_ptr": FP32, "counts_ptr": "*i32",
    "tiles_ptr": "*i32", "pairs_ptr": "*i32", "x_scale_stride": INT, "capacity": INT, "shared_tiles": INT,
}  # fmt: skip


@pytest.mark.ahead
def test_dense_products() -> None:
    builds = [
        Build(
            module="kernels.fp8_gemm",
            kernel="_fp8_gemm",
            types=GEMM | {"out_ptr": FP32},
            constants={
                "N": 7168, "K": 16384, "SPLITS": 4, "BLOCK_N": config.block_n, "BLOCK_R": config.block_r
            },
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        for _, config in CONFIGS
    ]  # fmt: skip
    for (_, config), found in zip(CONFIGS, resources(builds), strict=True):
        found.check(wgmma=f"m64n{config.block_r}k32 e4m3")


@pytest.mark.parametrize("splits", [1, 4])
def test_dense_products_of_many_rows(splits: int) -> None:
    config = fp8_gemm_many.CONFIG
    build = Build(
        module="kernels.fp8_gemm_many",
        kernel="_fp8_gemm_many",
        types=GEMM | {"out_ptr": "*bf16"},
        constants={
            "N": 7168, "K": 16384, "SPLITS": splits, "BLOCK_N": config.block_n, "BLOCK_R": config.block_r
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    [found] = resources([build])
    found.check(wgmma=f"m64n{config.block_n}k32 e4m3")


@pytest.mark.ahead
def test_products_of_experts() -> None:
    shape = {"E": 257, "D": 7168, "F": 2048}
    builds = [
        Build(
            module="kernels.expert_gemm",
            kernel="_expert_up",
            types=EXPERT | {"out_ptr": FP8, "out_scale_ptr": FP32, "out_scale_stride": INT},
            constants=shape | {"PAIRS": 9, "BLOCK_N": config.block_n, "BLOCK_R": tile_rows},
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        for tile_rows, config in UP_CONFIGS.items()
    ]
    builds += [
        Build(
            module="kernels.expert_gemm",
            kernel="_expert_down",
            types=EXPERT | {"out_ptr": out, "box_pairs": INT},
            constants=shape | {"BLOCK_N": config.block_n, "BLOCK_R": tile_rows, "ADDRESS_STRIDE": stride},
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        for out, stride in (("*bf16", 0), ("*i64", 2))
        for tile_rows, config in DOWN_CONFIGS.items()
    ]
    tiles = [*UP_CONFIGS, *DOWN_CONFIGS, *DOWN_CONFIGS]
    for tile_rows, found in zip(tiles, resources(builds), strict=True):
        found.check(wgmma=f"m64n{tile_rows}k32 e4m3")


def test_products_of_experts_with_many_rows() -> None:
    config = expert_gemm_many.CONFIG
    build = Build(
        module="kernels.expert_gemm_many",
        kernel="_expert_gemm_many",
        types=EXPERT | {"out_ptr": "*bf16"},
        constants={
            "E": 257, "N": 4096, "K": 7168, "PAIRS": 9, "BLOCK_N": config.block_n,
            "BLOCK_R": expert_gemm_many.TILE_ROWS,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    [found] = resources([build])
    found.check(wgmma=f"m64n{config.block_n}k32 e4m3")
