"""Every shipped configuration of the products fits an sm_90.

No spill, FP8's own wgmma, and products that do not wait for each other. Knows no device: nothing runs.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="needs Triton")

from kernels import absorb_many, bf16_gemm, expert_gemm_many, expert_mlp, fp8_gemm, fp8_gemm_many
from kernels.expert_gemm import DOWN_CONFIGS, UP_CONFIGS
from kernels.fp8_gemm import CONFIGS
from tests.gpu.ahead import OPERAND, Build, operand_of, resources

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

MANY = {
    "x_ptr": FP8, "x_desc": OPERAND, "x_scale_ptr": FP32, "x_scale_stride": INT, "w_desc": OPERAND,
    "w_scale_ptr": FP32, "out_scale_ptr": FP32, "out_scale_stride": INT, "counts_ptr": "*i32",
    "tiles_ptr": "*i32", "pairs_ptr": "*i32", "rows": INT, "capacity": INT, "shared_tiles": INT,
}  # fmt: skip
MLP = {
    "x_ptr": FP8, "x_scale_ptr": FP32, "x_scale_stride": INT, "gate_up_desc": OPERAND, "down_desc": OPERAND,
    "gate_up_scale_ptr": FP32, "down_scale_ptr": FP32, "between_ptr": FP8, "between_scale_ptr": FP32,
    "between_scale_stride": INT, "out_ptr": "*bf16", "counts_ptr": "*i32", "tiles_ptr": "*i32",
    "pairs_ptr": "*i32", "done_ptr": "*i32", "capacity": INT, "shared_tiles": INT,
}  # fmt: skip


@pytest.mark.ahead
def test_products_of_many_rows_that_copies_run_beside() -> None:
    def build(
        out: str, outputs: int, splits: int, *, listed: bool, activated: bool = False, inner: int = 7168
    ) -> Build:
        blocks = fp8_gemm_many.blocks_of_tile(outputs, splits)
        return Build(
            module="kernels.many_gluon",
            kernel="many_kernel",
            types=MANY | {"out_ptr": out},
            constants={
                "E": 257, "N": outputs, "K": inner, "SPLITS": splits, "BLOCKS": blocks, "LISTED": listed,
                "ACTIVATED": activated, "PAIRS": 9, "STAGES": fp8_gemm_many.STAGES[blocks],
            },
            num_warps=4,
        )  # fmt: skip

    builds = [
        build(FP8, 4096, 1, listed=True, activated=True),
        build("*bf16", 7168, 1, listed=True),
        build("*bf16", 384, 1, listed=True),
        build("*bf16", 32768, 1, listed=False),
        build("*bf16", 32768, 1, listed=False, inner=512),
        build(FP32, 7168, 1, listed=False),
        build(FP32, 2304, 7, listed=False),
        build("*bf16", 7168, 4, listed=False),
    ]
    for found in resources(builds):
        found.check(wgmma="m64n128k32 e4m3")


@pytest.mark.ahead
def test_products_of_few_rows_that_copies_run_beside() -> None:
    def build(tile_rows: int, out: str, outputs: int, inner: int, splits: int) -> Build:
        return Build(
            module="kernels.few_gluon",
            kernel="few_kernel",
            types={
                "x_desc": operand_of(tile_rows), "x_scale_ptr": FP32, "x_scale_stride": INT,
                "w_desc": OPERAND, "w_scale_ptr": FP32, "out_ptr": out, "rows": INT,
            },
            constants={
                "N": outputs, "K": inner, "SPLITS": splits, "BLOCK_R": tile_rows,
                "STAGES": fp8_gemm.STAGES[tile_rows],
            },
            num_warps=4,
        )  # fmt: skip

    tiles = [*fp8_gemm.STAGES, *fp8_gemm.STAGES]
    builds = [build(tile_rows, FP32, 7168, 16384, 4) for tile_rows in fp8_gemm.STAGES]
    builds += [build(tile_rows, "*bf16", 32768, 1536, 1) for tile_rows in fp8_gemm.STAGES]
    for tile_rows, found in zip(tiles, resources(builds), strict=True):
        found.check(wgmma=f"m64n{tile_rows}k32 e4m3")


@pytest.mark.ahead
def test_both_products_of_experts_in_one_launch() -> None:
    builds = [
        Build(
            module="kernels.expert_mlp_gluon",
            kernel="expert_mlp_kernel",
            types=MLP,
            constants={
                "E": 257, "D": 7168, "F": 2048, "PAIRS": 9, "BLOCK_R": tile_rows, "STAGES": stages,
            },
            num_warps=4,
        )
        for tile_rows, stages in expert_mlp.STAGES.items()
    ]  # fmt: skip
    for tile_rows, found in zip(expert_mlp.STAGES, resources(builds), strict=True):
        found.check(wgmma=f"m64n{tile_rows}k32 e4m3")


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


def test_narrow_products_of_many_rows() -> None:
    build = Build(
        module="kernels.bf16_gemm",
        kernel="_bf16_gemm_many",
        types={"x_ptr": "*bf16", "w_ptr": "*bf16", "out_ptr": FP32, "rows": INT},
        constants={
            "N": 256, "K": 7168, "SPLITS": 14, "BLOCK_N": bf16_gemm.MANY_TILE,
            "BLOCK_R": bf16_gemm.MANY_TILE, "BLOCK_K": bf16_gemm.BLOCK_K,
        },
        num_warps=bf16_gemm.MANY_WARPS,
        num_stages=bf16_gemm.MANY_STAGES,
    )  # fmt: skip
    [found] = resources([build])
    found.check(wgmma=f"m64n{bf16_gemm.MANY_TILE}k16 bf16")


def test_queries_of_many_rows_into_latent_space() -> None:
    build = Build(
        module="kernels.absorb_many",
        kernel="_absorb_query_many",
        types={
            "up_ptr": "*bf16", "w_ptr": FP8, "w_scale_ptr": FP32, "cos_ptr": FP32, "sin_ptr": FP32,
            "positions_ptr": "*i32", "out_ptr": "*fp16", "rows": INT,
        },
        constants={"X": 32768, "N": 128, "C": 512, "T": 32, "BLOCK_R": absorb_many.BLOCK_R},
        num_warps=absorb_many.NUM_WARPS,
    )  # fmt: skip
    [found] = resources([build])
    found.check(wgmma="m64n128k16 bf16")
