"""Cases of the products of a layer and of what stands between them.

See bench/kernel_cases.py for what a case is. Peers' figures are DeepGEMM's on an H200 for the products alone:
the experts here also multiply gate by up and quantise, which no peer's figure holds. Knows nothing of clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.kernel_cases import Case, Peer
from kernels import absorb, residual_norm
from kernels import expert_gemm_many as many
from kernels.expert_gemm import expert_down, expert_up, experts_reference
from kernels.expert_mlp import expert_mlp
from kernels.fp8_gemm import GemmConfig, config_for, fp8_matmul, fp8_matmul_reference, splits_for
from kernels.fp8_gemm_many import CONFIG as TRITON
from kernels.fp8_gemm_many import fp8_matmul_many
from kernels.fp8_rows import GROUP, Fp8Rows, Fp8Weight, empty_rows, quantize_rows
from kernels.gate_topk import GateShape, gate_topk, gate_topk_reference
from kernels.routes import Routes, empty_routes, routes_of
from kernels.swiglu import swiglu_quantize

HIDDEN, WIDTH = 7168, 2048
FP8_ERROR = 2e-2  # of a result that was rounded to FP8 in between, by norms

# experts, rows of each: us of DeepGEMM's masked grouped products, up (4096 x 7168) and down (7168 x 2048)
EXPERT_PEER_US = {
    (8, 4): 64.8 + 37.6, (8, 16): 65.5 + 37.7, (8, 32): 64.7 + 37.5, (8, 64): 65.1 + 37.7,
    (32, 16): 243.2 + 130.6, (8, 512): 204.6 + 108.5,
}  # fmt: skip
# outputs, inner, rows: us of DeepGEMM's dense product (for 2304 outputs, that of the 2112 which are padded)
DENSE_PEER_US = {
    (7168, 16384, 1): 39.4, (7168, 16384, 16): 36.8, (7168, 16384, 64): 37.0, (7168, 16384, 128): 46.4,
    (7168, 16384, 4096): 771.0, (24576, 1536, 1): 16.3, (24576, 1536, 64): 16.2, (24576, 1536, 4096): 238.2,
    (7168, 18432, 64): 40.5, (7168, 18432, 4096): 866.5, (2304, 7168, 4096): 95.9, (4096, 7168, 4096): 172.1,
    (32768, 512, 4096): 130.4,
}  # fmt: skip


def experts_cases() -> Iterator[Case]:
    """Both products of every expert, SwiGLU and quantisation between, each row with one expert."""
    for (experts, each), peer_us in EXPERT_PEER_US.items():
        chosen_RK = torch.arange(experts, device="cuda").repeat_interleave(each)[:, None]

        def make(experts: int = experts, each: int = each) -> tuple[Fp8Rows, Fp8Weight, Fp8Weight]:
            x = quantize_rows(torch.randn(experts * each, HIDDEN, device="cuda"))
            return x, random_weight(experts, 2 * WIDTH, HIDDEN), random_weight(experts, HIDDEN, WIDTH)

        def error(inputs: Any, got: Tensor, chosen_RK: Tensor = chosen_RK) -> float:
            x, gate_up, down = inputs
            wanted = experts_reference(x, gate_up, down, chosen_RK)
            return _by_norm(got, wanted[:, 0], FP8_ERROR)

        variants: dict[str, Callable[[Any], Tensor]] = {}
        for tile_rows in [16, 32, 64] if each <= 64 else [64]:
            routes = routes_of(chosen_RK, experts, tile_rows)
            variants[f"tiles of {tile_rows} rows, one launch"] = partial(_few_experts, routes=routes)
            variants[f"tiles of {tile_rows} rows, two"] = partial(_few_experts, routes=routes, launches=2)
        if each > 64:
            routes = routes_of(chosen_RK, experts, many.TILE_ROWS)
            variants["many rows"] = partial(_many_experts, routes=routes)
            variants["many rows, Triton"] = partial(_many_experts_triton, routes=routes)
        yield Case(
            op="experts",
            name=f"{experts} experts x {each} rows",
            make=make,
            variants=variants,
            error=error,
            bytes=experts * 3 * WIDTH * HIDDEN,
            flops=6 * experts * each * WIDTH * HIDDEN,
            peer=Peer(name="DeepGEMM, unfused, without SwiGLU", time_us=peer_us),
        )


def _few_experts(inputs: tuple[Fp8Rows, Fp8Weight, Fp8Weight], routes: Routes, launches: int = 1) -> Tensor:
    x, gate_up, down = inputs
    between = empty_rows(len(x.values_RK), WIDTH, x.values_RK.device)
    out = x.scale_GR.new_empty(len(x.values_RK), HIDDEN, dtype=torch.bfloat16)
    if launches == 1:
        expert_mlp(x, gate_up, down, routes, between, out)
    else:
        expert_up(x, gate_up, routes, between)
        expert_down(between, down, routes, out)
    return out


def _many_experts(inputs: tuple[Fp8Rows, Fp8Weight, Fp8Weight], routes: Routes) -> Tensor:
    x, gate_up, down = inputs
    between = empty_rows(len(x.values_RK), WIDTH, x.values_RK.device)
    out = x.scale_GR.new_empty(len(x.values_RK), HIDDEN, dtype=torch.bfloat16)
    many.expert_up_many(x, gate_up, routes, between)
    many.expert_matmul_many(between, down, routes, out, by_row=False)
    return out


def _many_experts_triton(inputs: tuple[Fp8Rows, Fp8Weight, Fp8Weight], routes: Routes) -> Tensor:
    x, gate_up, down = inputs
    rows = len(x.values_RK)
    between = empty_rows(rows, WIDTH, x.values_RK.device)
    both = x.scale_GR.new_empty(rows, 2 * WIDTH, dtype=torch.bfloat16)
    out = x.scale_GR.new_empty(rows, HIDDEN, dtype=torch.bfloat16)
    many.expert_matmul_many(x, gate_up, routes, both, by_row=True, config=many.CONFIG)
    swiglu_quantize(both, between)
    many.expert_matmul_many(between, down, routes, out, by_row=False, config=many.CONFIG)
    return out


def dense_cases() -> Iterator[Case]:
    for (outputs, inner, rows), peer_us in DENSE_PEER_US.items():

        def make(outputs: int = outputs, inner: int = inner, rows: int = rows) -> tuple[Fp8Rows, Fp8Weight]:
            return quantize_rows(torch.randn(rows, inner, device="cuda")), random_weight(outputs, inner)

        def error(inputs: Any, got: Tensor) -> float:
            x, weight = inputs
            few = Fp8Rows(x.values_RK[:64].contiguous(), x.scale_GR[:, :64])
            return _by_norm(got[:64], fp8_matmul_reference(few, weight), 4e-3)

        splits = splits_for(outputs, inner)
        variants: dict[str, Callable[[Any], Tensor]] = {
            "few rows": partial(_few, splits=splits),
            "few rows, Triton": partial(_few, splits=splits, config=config_for(rows)),
            "many rows, exact": partial(_many, splits=splits),
            "many rows": partial(_many, splits=1),
            "many rows, exact, Triton": partial(_many, splits=splits, config=TRITON),
        }
        if rows < 64:
            variants = {name: run for name, run in variants.items() if name.startswith("few")}
        yield Case(
            op="dense",
            name=f"{outputs} x {inner}, {rows} rows, {splits} splits",
            make=make,
            variants=variants,
            error=error,
            bytes=outputs * inner,
            flops=2 * outputs * inner * rows,
            peer=Peer(name="DeepGEMM", time_us=peer_us),
        )


def _few(inputs: tuple[Fp8Rows, Fp8Weight], splits: int, config: GemmConfig | None = None) -> Tensor:
    """Its parts are added here only where there are several: in a layer the next kernel does it."""
    x, weight = inputs
    shape = (splits, len(x.values_RK), len(weight.values_NK))
    out = x.scale_GR.new_empty(shape)
    fp8_matmul(x, weight, out, config=config)
    return out.sum(0) if not torch.cuda.is_current_stream_capturing() else out


def _many(inputs: tuple[Fp8Rows, Fp8Weight], splits: int, config: GemmConfig | None = None) -> Tensor:
    x, weight = inputs
    out = x.scale_GR.new_empty(len(x.values_RK), len(weight.values_NK), dtype=torch.bfloat16)
    fp8_matmul_many(x, weight, out, splits=splits, config=config)
    return out


def between_cases() -> Iterator[Case]:
    """The gate, the norm and the absorbed projections: latency, most of it."""
    for rows in (1, 64, 128):
        yield _gate_case(rows)
        yield _norm_case(rows)
        yield _absorb_case(rows)


def _gate_case(rows: int) -> Case:
    shape = GateShape(num_experts=256, per_row=8, num_groups=8, kept_groups=4, scaling=2.5, shared=True)
    bias_E = torch.zeros(256, device="cuda")

    def run(scores_SRE: Tensor) -> Tensor:
        weights_RK = scores_SRE.new_empty(rows, 8)
        experts_RK = scores_SRE.new_empty(rows, 8, dtype=torch.int32)
        routes = empty_routes(257, rows, 9, 16, scores_SRE.device, shared=True)
        gate_topk(scores_SRE, bias_E, shape, weights_RK, experts_RK, routes)
        return weights_RK

    def error(scores_SRE: Tensor, got: Tensor) -> float:
        return _by_norm(got, gate_topk_reference(scores_SRE.sum(0), bias_E, shape)[0], 1e-5)

    return Case(
        op="between",
        name=f"gate, {rows} rows (with three fills of the routes)",
        make=lambda: torch.randn(14, rows, 256, device="cuda"),
        variants={"gate_topk": run},
        error=error,
        bytes=14 * rows * 256 * 4,
        flops=0,
    )


def _norm_case(rows: int) -> Case:
    weight_D = torch.rand(HIDDEN, device="cuda") + 0.5

    def make() -> tuple[Tensor, Tensor]:
        residual_RD = torch.randn(rows, HIDDEN, device="cuda").bfloat16()
        return residual_RD, torch.randn(4, rows, HIDDEN, device="cuda")

    def run(inputs: Any) -> Tensor:
        residual_RD, delta_SRD = inputs
        out_RD = torch.empty_like(residual_RD)
        out = empty_rows(rows, HIDDEN, residual_RD.device)
        residual_norm.residual_norm(residual_RD, delta_SRD, weight_D, 1e-6, out_RD, out)
        return out_RD

    def error(inputs: Any, got: Tensor) -> float:
        rms = got.double().div(weight_D.double()).square().mean(-1)
        return float((rms - 1).abs().max() / 1e-2)  # the residual has changed: only its size is known

    return Case(
        op="between",
        name=f"residual + norm + FP8, 4 parts, {rows} rows",
        make=make,
        variants={"residual_norm": run},
        error=error,
        bytes=rows * HIDDEN * (16 + 4 + 2 + 1),
        flops=0,
    )


def _absorb_case(rows: int) -> Case:
    def make() -> tuple[Tensor, Fp8Weight]:
        latent_RNC = torch.randn(rows, 128, 512, device="cuda").bfloat16()
        return latent_RNC, random_weight(128 * 2 * GROUP, 512)

    def run(inputs: Any) -> Tensor:
        latent_RNC, kv_b = inputs
        out = empty_rows(rows, 128 * GROUP, latent_RNC.device)
        absorb.absorb_value(latent_RNC, kv_b, out)
        return out.float() if not torch.cuda.is_current_stream_capturing() else out.values_RK

    def error(inputs: Any, got: Tensor) -> float:
        return _by_norm(got, absorb.absorb_value_reference(*inputs), 4e-2)

    return Case(
        op="between",
        name=f"absorbed value projection, {rows} rows",
        make=make,
        variants={"absorb_value": run},
        error=error,
        bytes=128 * GROUP * 512 + rows * 128 * (512 * 2 + 128),
        flops=2 * rows * 128 * GROUP * 512,
    )


def random_weight(*shape: int) -> Fp8Weight:
    """Finite bytes of any sign and size."""
    bytes_NK = (
        torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda").bitwise_and_(0xDF).bitwise_or_(0x40)
    )
    scale = torch.rand(*shape[:-2], shape[-2] // GROUP, shape[-1] // GROUP, device="cuda") + 0.5
    return Fp8Weight(bytes_NK.view(torch.float8_e4m3fn), scale / (13.5 * shape[-1] ** 0.5))


def _by_norm(got: Tensor, expected: Tensor, tolerance: float) -> float:
    difference = (got.double() - expected.double()).norm() / expected.double().norm()
    return float(difference.nan_to_num(nan=torch.inf)) / tolerance


CASES: Mapping[str, Callable[[], Iterator[Case]]] = {
    "experts": experts_cases,
    "dense": dense_cases,
    "between": between_cases,
}
