"""Trial of the Gluon products: bits beside Triton's, then times, variants interleaved. Knows no goal."""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from bench.product_cases import random_weight
from kernels.expert_gemm import expert_down, expert_up, experts_reference
from kernels.expert_gemm_many import expert_matmul_many
from kernels.fp8_gemm import fp8_matmul, splits_for
from kernels.fp8_gemm_many import fp8_matmul_many
from kernels.fp8_rows import Fp8Rows, Fp8Weight, empty_rows, quantize_rows
from kernels.experts_gluon import expert_mlp_kernel
from kernels.many_gluon import many_kernel
from kernels.routes import routes_of
from kernels.swiglu import swiglu_quantize

OPERAND = gl.NVMMASharedLayout(128, 8, 2)
BASE = {"HALVES": 2, "STAGES": 4, "PROXY": 1, "PAIRED": False, "TURNS": False, "BAND": 16, "MULTIPLIER_REGISTERS": 224}
NARROW = BASE | {"HALVES": 1, "STAGES": 5}
TURNS = {"TURNS": True}
LISTED = {
    "wide fence": BASE,
    "wide lag": BASE | {"PROXY": 2},
    "wide fence turns": BASE | TURNS,
    "wide lag turns": BASE | {"PROXY": 2} | TURNS,
    "pairs lag": NARROW | {"PAIRED": True, "PROXY": 2},
}
DENSE = {
    "wide tma": BASE | {"PROXY": 0},
    "wide tma turns": BASE | {"PROXY": 0} | TURNS,
    "wide lag": BASE | {"PROXY": 2},
    "narrow tma": NARROW | {"PROXY": 0},
    "narrow tma turns": NARROW | {"PROXY": 0} | TURNS,
    "pairs tma": NARROW | {"PROXY": 0, "PAIRED": True},
}
EXACT = {name: DENSE[name] for name in ("narrow tma", "narrow tma turns")}
DENSE_SHAPES = [
    (7168, 16384, 4096), (2304, 7168, 4096), (32768, 1536, 4096), (36864, 7168, 4096), (7168, 16384, 16384),
]


def launch(x: Fp8Rows, weight: Fp8Weight, out, variant, *, routes=None, by_row=True, splits=1, fused=False):
    w = weight.values_NK.view(-1, weight.values_NK.shape[-1])
    outputs, inner = weight.values_NK.shape[-2:]
    w_desc = TensorDescriptor.from_tensor(w, [128, 128], OPERAND)
    tma_rows = variant["PROXY"] == 0
    x_desc = TensorDescriptor.from_tensor(x.values_RK, [128, 128], OPERAND) if tma_rows else w_desc
    listed = routes is not None
    values, scale = (out.values_RK, out.scale_GR) if fused else (out, x.scale_GR)
    counts, tiles, pairs = (routes.counts, routes.tiles, routes.pairs_EC) if listed else (x.scale_GR,) * 3
    if not listed:
        counts = tiles = pairs = DUMMY.setdefault("i", torch.zeros(4, dtype=torch.int32, device="cuda"))
    many_kernel[(132,)](
        x.values_RK, x_desc, x.scale_GR, w_desc, weight.scale_NK, values, scale, scale.stride(0),
        counts, tiles, pairs, len(x.values_RK), x.scale_GR.stride(0),
        routes.capacity if listed else 0, routes.shared_tiles if listed else 0,
        E=routes.num_experts if listed else 1, N=outputs, K=inner, SPLITS=splits, LISTED=listed,
        PAIRS=routes.pairs_per_row if listed and by_row else 1, FUSED=fused, **variant,
        num_warps=4,
    )


DUMMY: dict = {}


def listed_jobs():
    """name -> (make, {variant: run}, flops)"""
    experts, each = 8, 512
    rows = experts * each
    chosen = torch.arange(experts, device="cuda").repeat_interleave(each)[:, None]
    routes = routes_of(chosen, experts, 128)
    jobs = {}
    for name, outputs, inner in (("up", 4096, 7168), ("down", 7168, 2048)):
        def make(outputs=outputs, inner=inner):
            x = quantize_rows(torch.randn(rows, inner, device="cuda"))
            return x, random_weight(experts, outputs, inner), torch.full((rows, outputs), float("nan"), device="cuda", dtype=torch.bfloat16)
        runs = {"triton": lambda i: (expert_matmul_many(i[0], i[1], routes, i[2], by_row=True), i[2])[1]}
        for v, c in LISTED.items():
            runs[v] = lambda i, c=c: (launch(i[0], i[1], i[2], c, routes=routes), i[2])[1]
        jobs["experts " + name] = (make, runs, 2 * rows * outputs * inner)
    def make_up():
        x = quantize_rows(torch.randn(rows, 7168, device="cuda"))
        both = torch.full((rows, 4096), float("nan"), device="cuda", dtype=torch.bfloat16)
        return x, random_weight(experts, 4096, 7168), both, empty_rows(rows, 2048, torch.device("cuda")), random_weight(experts, 7168, 2048), torch.full((rows, 7168), float("nan"), device="cuda", dtype=torch.bfloat16)
    small = routes_of(chosen, experts, 64)
    def few(i):
        expert_up(i[0], i[1], small, i[3])
        return i[3].values_RK.view(torch.uint8)
    runs = {"triton tiles of 64": few}
    for v in ("wide fence", "wide lag", "wide fence turns", "wide lag turns"):
        runs["fused " + v] = lambda i, c=LISTED[v]: (launch(i[0], i[1], i[3], c, routes=routes, fused=True), i[3].values_RK.view(torch.uint8))[1]
    jobs["experts up, swiglu, fp8"] = (make_up, runs, 2 * rows * 4096 * 7168)
    def all_triton(i):
        expert_matmul_many(i[0], i[1], routes, i[2], by_row=True)
        swiglu_quantize(i[2], i[3])
        expert_matmul_many(i[3], i[4], routes, i[5], by_row=False)
        return i[5]
    def all_few(i):
        expert_up(i[0], i[1], small, i[3])
        expert_down(i[3], i[4], small, i[5])
        return i[5]
    runs = {"few, tiles of 64": all_few, "triton many": all_triton}
    for v in ("wide fence", "wide lag", "wide fence turns", "wide lag turns"):
        def all_gluon(i, c=LISTED[v]):
            launch(i[0], i[1], i[3], c, routes=routes, fused=True)
            launch(i[3], i[4], i[5], c, routes=routes)
            return i[5]
        runs["gluon fused " + v] = all_gluon
        def unfused(i, c=LISTED[v]):
            launch(i[0], i[1], i[2], c, routes=routes)
            swiglu_quantize(i[2], i[3])
            launch(i[3], i[4], i[5], c, routes=routes)
            return i[5]
        runs["gluon unfused " + v] = unfused
    jobs["experts all"] = (make_up, runs, 6 * rows * 2048 * 7168)
    return jobs


def dense_jobs():
    jobs = {}
    for outputs, inner, rows in DENSE_SHAPES:
        def make(outputs=outputs, inner=inner, rows=rows):
            x = quantize_rows(torch.randn(rows, inner, device="cuda"))
            return x, random_weight(outputs, inner), torch.full((rows, outputs), float("nan"), device="cuda", dtype=torch.bfloat16)
        flops = 2 * rows * outputs * inner
        parts = splits_for(outputs, inner)
        for splits, variants in ((1, DENSE), (parts, EXACT)):
            if splits == 1 and variants is EXACT:
                continue
            runs = {"triton": lambda i, splits=splits: (fp8_matmul_many(i[0], i[1], i[2], splits=splits), i[2])[1]}
            for v, c in variants.items():
                runs[v] = lambda i, c=c, splits=splits: (launch(i[0], i[1], i[2], c, splits=splits), i[2])[1]
            jobs[f"dense {outputs} x {inner}, {rows} rows, {splits} splits"] = (make, runs, flops)
    return jobs


def launch_mlp(x, gate_up, down, between, out, routes, done, stages, cooperative=True):
    experts, hidden, width = down.values_NK.shape
    up_desc = TensorDescriptor.from_tensor(gate_up.values_NK.view(-1, hidden), [128, 128], OPERAND)
    down_desc = TensorDescriptor.from_tensor(down.values_NK.view(-1, width), [128, 128], OPERAND)
    expert_mlp_kernel[(132,)](
        x.values_RK, x.scale_GR, x.scale_GR.stride(0), up_desc, gate_up.scale_NK, down_desc, down.scale_NK,
        between.values_RK, between.scale_GR, between.scale_GR.stride(0), out, routes.counts, routes.tiles,
        routes.pairs_EC, done, routes.capacity, routes.shared_tiles, E=experts, D=hidden, F=width,
        PAIRS=routes.pairs_per_row, BLOCK_R=routes.tile_rows, STAGES=stages, MULTIPLIER_REGISTERS=200,
        num_warps=4, launch_cooperative_grid=cooperative,
    )


MLP = {16: (6, 5), 32: (5, 4), 64: (4, 3)}


def mlp_jobs():
    jobs = {}
    for experts, each in ((8, 4), (8, 16), (8, 32), (8, 64), (32, 16)):
        rows = experts * each
        chosen = torch.arange(experts, device="cuda").repeat_interleave(each)[:, None]
        def make(rows=rows, experts=experts):
            x = quantize_rows(torch.randn(rows, 7168, device="cuda"))
            out = torch.full((rows, 7168), float("nan"), device="cuda", dtype=torch.bfloat16)
            return x, random_weight(experts, 4096, 7168), random_weight(experts, 7168, 2048), empty_rows(rows, 2048, torch.device("cuda")), out
        runs = {}
        for tile_rows in (16, 32, 64):
            if tile_rows > 2 * each and tile_rows > 16:
                continue
            routes = routes_of(chosen, experts, tile_rows)
            def today(i, routes=routes):
                expert_up(i[0], i[1], routes, i[3])
                expert_down(i[3], i[2], routes, i[4])
                return i[4]
            runs[f"today, tiles of {tile_rows}"] = today
            done = torch.zeros(routes.max_tiles, dtype=torch.int32, device="cuda")
            for stages in MLP[tile_rows]:
                def one(i, routes=routes, done=done, stages=stages):
                    launch_mlp(*i[:5], routes, done, stages)
                    return i[4]
                runs[f"one launch, tiles of {tile_rows}, {stages} stages"] = one
            def loose(i, routes=routes, done=done, stages=MLP[tile_rows][0]):
                launch_mlp(*i[:5], routes, done, stages, cooperative=False)
                return i[4]
            runs[f"one launch, tiles of {tile_rows}, not cooperative"] = loose
        jobs[f"mlp {experts} experts x {each} rows"] = (make, runs, 6 * rows * 2048 * 7168)
    return jobs


PARTS = {"listed": listed_jobs, "mlp": mlp_jobs, "dense": dense_jobs}


def jobs():
    return PARTS[os.environ["PART"]]()


def compile_share(share):
    first, of = share
    number = 0
    for make, runs, _ in jobs().values():
        inputs = None
        for run in runs.values():
            number += 1
            if number % of == first:
                try:
                    inputs = make() if inputs is None else inputs
                    run(inputs)
                    torch.cuda.synchronize()
                except Exception:
                    traceback.print_exc(limit=3)
                    return
        del inputs
        torch.cuda.empty_cache()


def ragged() -> None:
    torch.manual_seed(1)
    experts, hidden, width, rows = 6, 1024, 512, 333
    x = quantize_rows(torch.randn(rows, hidden, device="cuda"))
    gate_up, down = random_weight(experts, 2 * width, hidden), random_weight(experts, hidden, width)
    chosen = torch.stack([torch.randperm(experts, device="cuda")[:2] for _ in range(rows)])
    chosen[0, 1] = -1
    chosen[chosen == 1] = 0
    chosen[chosen[:, 0] == chosen[:, 1], 1] = -1
    routes, small = routes_of(chosen, experts, 128), routes_of(chosen, experts, 64)
    wanted = experts_reference(x, gate_up, down, chosen)
    routed = chosen >= 0
    for name, c in LISTED.items():
        for fused in (False, True):
            if fused and (c["HALVES"] == 1):
                continue
            between = empty_rows(rows * 2, width, torch.device("cuda"))
            between.values_RK.view(torch.uint8).fill_(0)
            out = torch.full((rows * 2, hidden), float("nan"), dtype=torch.bfloat16, device="cuda")
            if fused:
                launch(x, gate_up, between, c, routes=routes, fused=True)
            else:
                both = torch.full((rows * 2, 2 * width), float("nan"), dtype=torch.bfloat16, device="cuda")
                launch(x, gate_up, both, c, routes=routes)
                theirs = torch.full_like(both, float("nan"))
                expert_matmul_many(x, gate_up, routes, theirs, by_row=True)
                print("ragged", name, "up has Triton's bits", torch.equal(both.nan_to_num(), theirs.nan_to_num()))
                swiglu_quantize(both.nan_to_num(), between)
            launch(between, down, out, c, routes=routes, by_row=False)
            got = out.view(rows, 2, hidden)
            error = float((got[routed].double() - wanted[routed]).norm() / wanted[routed].norm())
            print("ragged", name, "fused" if fused else "unfused", f"error {error:.2e}", "unrouted untouched", bool(got[~routed].isnan().all()))
            if fused:
                few8 = empty_rows(rows * 2, width, torch.device("cuda"))
                few8.values_RK.view(torch.uint8).fill_(0)
                few = torch.full_like(out, float("nan"))
                expert_up(x, gate_up, small, few8)
                expert_down(few8, down, small, few)
                print("ragged", name, "fused has decode's bits", torch.equal(few.nan_to_num(), out.nan_to_num()),
                      torch.equal(few8.values_RK.view(torch.uint8), between.values_RK.view(torch.uint8)))
    for rows in (1, 130, 1000):
        x, weight = quantize_rows(torch.randn(rows, 7168, device="cuda")), random_weight(2304, 7168)
        parts = torch.empty(7, rows, 2304, device="cuda")
        fp8_matmul(x, weight, parts)
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        for name, c in EXACT.items():
            out = torch.full((rows, 2304), float("nan"), device="cuda")
            launch(x, weight, out, c, splits=7)
            print("exact", rows, name, "decode's bits", torch.equal(total, out))
        exact = x.float().double() @ weight.float().double().t()
        for name, c in DENSE.items():
            out = torch.full((rows, 2304), float("nan"), device="cuda")
            launch(x, weight, out, c)
            print("fp64", rows, name, f"{float((out.double() - exact).norm() / exact.norm()):.2e}")


def ragged_mlp() -> None:
    torch.manual_seed(2)
    experts, hidden, width, rows = 6, 1024, 512, 100
    for tile_rows in (16, 32, 64):
        x = quantize_rows(torch.randn(rows, hidden, device="cuda"))
        gate_up, down = random_weight(experts, 2 * width, hidden), random_weight(experts, hidden, width)
        chosen = torch.stack([torch.randperm(experts, device="cuda")[:3] for _ in range(rows)])
        chosen[:, 2] = experts - 1
        chosen[chosen == 1] = 0
        chosen[chosen[:, 0] == chosen[:, 1], 1] = -1
        chosen[chosen[:, 0] == experts - 1, 0] = -1
        chosen[chosen[:, 1] == experts - 1, 1] = -1
        routes = routes_of(chosen, experts, tile_rows, shared=True)
        done = torch.zeros(routes.max_tiles, dtype=torch.int32, device="cuda")
        wanted = experts_reference(x, gate_up, down, chosen)
        routed = chosen >= 0
        seen = []
        for turn in range(4):
            between = empty_rows(rows * 3, width, torch.device("cuda"))
            between.values_RK.view(torch.uint8).fill_(0)
            out = torch.full((rows * 3, hidden), float("nan"), dtype=torch.bfloat16, device="cuda")
            if turn == 3:
                expert_up(x, gate_up, routes, between)
                expert_down(between, down, routes, out)
            else:
                launch_mlp(x, gate_up, down, between, out, routes, done, MLP[tile_rows][0])
            seen.append(out.view(rows, 3, hidden))
        errors = [f"{float((o[routed].double() - wanted[routed]).norm() / wanted[routed].norm()):.2e}" for o in seen]
        print("mlp ragged", tile_rows, "errors", errors, "bits", [torch.equal(o[routed], seen[-1][routed]) for o in seen],
              "unrouted untouched", bool(seen[0][~routed].isnan().all()), "counters clean", int(done.abs().sum()) == 0, flush=True)


CHECKS = {"listed": lambda: None, "mlp": ragged_mlp, "dense": lambda: None}


def poison(inputs):
    for place, one in enumerate(inputs):
        if isinstance(one, torch.Tensor):
            one.fill_(float("nan"))
        elif place == 3:  # between the two products
            one.values_RK.view(torch.uint8).fill_(0x7F)
            one.scale_GR.fill_(float("nan"))


def part() -> None:
    started = time.time()
    print(torch.cuda.get_device_name(), torch.__version__)
    with ProcessPoolExecutor(14, mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_share, [(share, 14) for share in range(14)]))
    print(f"compiled after {time.time() - started:.0f} s", flush=True)
    try:
        CHECKS[os.environ["PART"]]()
    except Exception:
        traceback.print_exc()
    results = []
    for name, (make, runs, flops) in jobs().items():
        if time.time() - started > float(os.environ.get("MOST_S", "45")):
            print("out of time before", name)
            break
        try:
            inputs = make()
            first = None
            graphs = {}
            for v, run in runs.items():
                try:
                    poison(inputs)
                    got = run(inputs).clone()
                    torch.cuda.synchronize()
                    poison(inputs)
                    again = run(inputs).clone()
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        for _ in range(3):
                            run(inputs)
                except Exception as error:
                    print(name, v, type(error).__name__, str(error)[:300])
                    torch.cuda.synchronize()
                    continue
                first = got if first is None else first
                same, stable = torch.equal(got, first), torch.equal(got, again)
                difference = float((got.float() - first.float()).norm() / first.float().norm())
                graphs[v] = (graph, same, stable, difference)
            times = {v: [] for v in graphs}
            for _ in range(7):
                for v, (graph, *_rest) in graphs.items():
                    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                    a.record()
                    graph.replay()
                    b.record()
                    b.synchronize()
                    times[v].append(a.elapsed_time(b) / 3 * 1000)
            print(name)
            for v, (_, same, stable, difference) in graphs.items():
                us = statistics.median(times[v])
                results.append({"job": name, "variant": v, "us": us, "tflops": flops / us / 1e6, "same": same})
                print(f"   {v:26} {us:9.1f} us {flops / us / 1e6:7.0f} TF  {'same bits' if same else f'DIFFERS {difference:.1e}'} {'' if stable else 'UNSTABLE'}", flush=True)
            del graphs, inputs, graph, _rest, got, again
            gc.collect()
            torch.cuda.empty_cache()
        except Exception:
            traceback.print_exc()
            break
    out = Path(os.environ.get("OUT", "."))
    (out / f"try_products_{os.environ['PART']}.json").write_text(json.dumps(results, indent=1))
    print(f"done after {time.time() - started:.0f} s")


def main() -> None:
    """A part a process: one that hangs ends with its own."""
    if "PART" in os.environ:
        return part()
    for name in PARTS:
        print(f"== {name}", flush=True)
        child = subprocess.Popen(
            [sys.executable, "-m", "bench.try_products"], env=os.environ | {"PART": name}, start_new_session=True
        )
        try:
            child.wait(55)
        except subprocess.TimeoutExpired:
            print(f"{name} HANGS or is slow: ended", flush=True)
        with_children = child.pid
        try:
            os.killpg(with_children, signal.SIGKILL)
        except ProcessLookupError:
            pass


if __name__ == "__main__":
    sys.exit(main())
