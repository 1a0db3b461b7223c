"""Both products of the experts over few rows.

On an sm_90 where Triton has Gluon one launch does what kernels/expert_gemm.py does in two, with the same
bits: down's weights are on their way while up's last rows are made. Knows nothing of how rows were routed.

Letters: R rows  D hidden  F expert width  E experts  P pairs
"""

from __future__ import annotations

from torch import Tensor

from kernels.expert_gemm import check_down, check_up, expert_down, expert_up
from kernels.fp8_rows import Fp8Rows, Fp8Weight
from kernels.hopper import has_gluon, multiprocessors, operand
from kernels.routes import Routes

try:
    from kernels.expert_mlp_gluon import expert_mlp_kernel
except ImportError:  # a Triton without Gluon
    expert_mlp_kernel = None

STAGES = {16: 5, 32: 4, 64: 3}  # by the rows of a tile


def expert_mlp(
    x: Fp8Rows, gate_up: Fp8Weight, down: Fp8Weight, routes: Routes, between: Fp8Rows, out_PD: Tensor
) -> None:
    """out_PD[pair] = down @ quantised(silu(gate @ x[row]) * (up @ x[row])), bf16, for every routed pair.

    Weights, between and out_PD are those of expert_up and expert_down. routes.done must be zero, and is again
    at the end. The programs of the one launch wait for each other: it is cooperative, all run or none.
    """
    device = x.values_RK.device
    if not has_gluon(device) or routes.tile_rows not in STAGES:
        expert_up(x, gate_up, routes, between)
        expert_down(between, down, routes, out_PD)
        return
    check_up(x, gate_up, routes, between)
    check_down(between, down, routes, out_PD)
    experts, hidden, width = down.values_NK.shape
    expert_mlp_kernel[(multiprocessors(device),)](
        x.values_RK,
        x.scale_GR,
        x.scale_GR.stride(0),
        operand(gate_up.values_NK),
        gate_up.scale_NK,
        operand(down.values_NK),
        down.scale_NK,
        between.values_RK,
        between.scale_GR,
        between.scale_GR.stride(0),
        out_PD,
        routes.counts,
        routes.tiles,
        routes.pairs_EC,
        routes.done,
        routes.capacity,
        routes.shared_tiles,
        E=experts,
        D=hidden,
        F=width,
        PAIRS=routes.pairs_per_row,
        BLOCK_R=routes.tile_rows,
        STAGES=STAGES[routes.tile_rows],
        num_warps=4,
        launch_cooperative_grid=True,
    )
