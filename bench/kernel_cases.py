"""What bench.kernels measures: a case is an op at a shape.

Each op's cases are made by one function, named in CASES; a new op adds a function and a line. Inputs are
fresh random numbers on the device; references are those beside the kernels. Knows nothing of clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import dense_mla as dense
from kernels import index_logits as logits
from kernels import select_topk as topk
from kernels import sparse_mla as mla
from kernels import sparse_mla_prefill as prefill
from kernels.fp8_rows import GROUP, Fp8Rows, empty_rows

SCALE = 192**-0.5
HEADS = 128
FP8_ERROR = 4e-2  # of a result that was rounded to FP8, by norms
MEASURED = "as packaged in vllm 0.23.0, on an H200 with CUDA graphs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """What the best public kernel took for this shape, and where that was measured."""

    name: str
    time_us: float
    source: str = MEASURED


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One op at one shape.

    make: fresh inputs. variants: name -> run(inputs). error: of a result, how far from the reference, at most
    1 where it is right. bytes and flops: of one run, each tensor once.
    """

    op: str
    name: str
    make: Callable[[], Any]
    variants: Mapping[str, Callable[[Any], Tensor]]
    error: Callable[[Any, Tensor], float]
    bytes: float
    flops: float
    peer: Peer | None = None


def scaled_error(got: Tensor, expected: Tensor, tolerance: float) -> float:
    """Largest difference over tolerance * (1 + |expected|); infinite where something is not a number."""
    difference = (got.double() - expected).abs() / (1 + expected.abs()) / tolerance
    return float(difference.nan_to_num(nan=torch.inf).max()) if got.numel() else 0.0


# Sparse MLA

DECODE_PEER_US = {1: 18.6, 16: 42.9, 64: 105.5, 128: 207.7, 256: 409.1}
CACHE_SLOTS = 1 << 18  # 172 MB, beyond the L2


def _latent_cache(num_slots: int) -> mla.QuantizedCache:
    latent_SC = torch.randn(num_slots, mla.LATENT_DIMS, device="cuda").mul_(64).clamp_(-448, 448)
    return mla.QuantizedCache(
        latent_SC=latent_SC.to(torch.float8_e4m3fn),
        scale_SG=torch.exp2(torch.randint(-9, -5, (num_slots, 4), device="cuda").float()),
        rotary_SR=torch.randn(num_slots, mla.ROTARY_DIMS, device="cuda").half(),
    )


def _slots(num_queries: int, num_slots: int) -> Tensor:
    """Distinct within each query: 2048 of a random stride's multiples."""
    at_TJ = torch.rand(num_queries, min(num_slots, 16384), device="cuda").topk(mla.MAX_SLOTS).indices
    first_T1 = torch.randint(0, num_slots, (num_queries, 1), device="cuda")
    return ((at_TJ * 7 + first_T1) % num_slots).int()


def _queries(num_queries: int) -> Tensor:
    return torch.randn(num_queries, HEADS, mla.LATENT_DIMS + mla.ROTARY_DIMS, device="cuda").half()


def sparse_mla_cases() -> Iterator[Case]:
    cache = _latent_cache(CACHE_SLOTS)
    for num_queries in (1, 16, 64, 128, 256):

        def make(num_queries: int = num_queries) -> tuple[Tensor, Tensor]:
            return _queries(num_queries), _slots(num_queries, CACHE_SLOTS)

        def run(inputs: Any, config: mla.SparseMlaConfig) -> Tensor:
            query_TNC, slots_TJ = inputs
            return mla.sparse_mla(query_TNC, slots_TJ, cache, scale=SCALE, config=config)

        def error(inputs: Any, got: Tensor) -> float:
            query_TNC, slots_TJ = (tensor[-4:] for tensor in inputs)
            expected = mla.sparse_mla_reference(query_TNC, slots_TJ, cache, scale=SCALE)
            return scaled_error(got[-4:], expected, 2**-8)

        configs = {
            f"triton, splits {splits}": mla.SparseMlaConfig(splits=splits)
            for splits in (1, 4, 16)
            if 16 <= splits * num_queries <= 256
        }
        configs |= {
            f"gluon, splits {splits}": mla.SparseMlaConfig(splits=splits, gluon=True)
            for splits in (1, 2, 4, 8, 16, 32)
            if 16 <= splits * num_queries <= 256
        }
        configs["exact"] = mla.EXACT
        configs["throughput"] = mla.config_for(num_queries, exact=False)
        per_query = mla.MAX_SLOTS * (512 + 16 + 128 + 4) + HEADS * (576 * 2 + 512 * 2)
        yield Case(
            op="sparse_mla",
            name=f"T={num_queries} J=2048",
            make=make,
            variants={name: partial(run, config=config) for name, config in configs.items()},
            error=error,
            bytes=num_queries * per_query,
            flops=2 * num_queries * HEADS * mla.MAX_SLOTS * (576 + 512),
            peer=Peer(name="FlashMLA", time_us=DECODE_PEER_US[num_queries]),
        )


def sparse_mla_prefill_cases() -> Iterator[Case]:
    num_queries = 4096
    for num_keys, peer_us in ((4096, 4188.4), (32768, 4397.6)):

        def make(num_keys: int = num_keys) -> tuple[Tensor, Tensor, Tensor]:
            keys_SC = torch.randn(num_keys, 576, device="cuda").half()
            return _queries(num_queries), _slots(num_queries, num_keys), keys_SC

        def run(inputs: Any, splits: int, gluon: bool) -> Tensor:
            config = replace(prefill.CONFIG, gluon=gluon)
            return prefill.sparse_mla_prefill(*inputs, scale=SCALE, splits=splits, config=config)

        def error(inputs: Any, got: Tensor) -> float:
            query_TNC, slots_TJ, keys_SC = inputs
            expected = prefill.sparse_mla_prefill_reference(
                query_TNC[-4:], slots_TJ[-4:], keys_SC, scale=SCALE
            )
            return scaled_error(got[-4:], expected, 2**-8)

        configs = {"gluon": (1, True), "exact": (mla.EXACT.splits, True), "triton": (1, False)}
        yield Case(
            op="sparse_mla_prefill",
            name=f"T={num_queries} S={num_keys} J=2048",
            make=make,
            variants={
                name: partial(run, splits=splits, gluon=gluon) for name, (splits, gluon) in configs.items()
            },
            error=error,
            bytes=num_queries * HEADS * (576 + 512) * 2 + num_keys * 576 * 2,
            flops=2 * num_queries * HEADS * mla.MAX_SLOTS * (576 + 512),
            peer=Peer(name="FlashMLA", time_us=peer_us),
        )


def dense_mla_cases() -> Iterator[Case]:
    for num_queries, first_position in ((2048, 0), (1024, 0), (1024, 1024)):
        num_keys = first_position + num_queries

        def make(num_queries: int = num_queries, num_keys: int = num_keys) -> tuple[Any, ...]:
            angles_TP = torch.rand(num_keys, mla.ROTARY_DIMS // 2, device="cuda")
            return (
                torch.randn(num_queries, HEADS * (dense.QUERY_DIMS + 64), device="cuda").bfloat16(),
                torch.randn(num_keys, HEADS * 2 * GROUP, device="cuda").bfloat16(),
                torch.randn(num_keys, mla.ROTARY_DIMS, device="cuda").half(),
                angles_TP.cos(),
                angles_TP.sin(),
                empty_rows(num_queries, HEADS * GROUP, torch.device("cuda")),
            )

        def run(inputs: Any, first_position: int = first_position) -> Tensor:
            out: Fp8Rows = inputs[-1]
            dense.dense_mla(*inputs, first_position=first_position, scale=SCALE)
            return out.values_RK

        def error(inputs: Any, got: Tensor, num_keys: int = num_keys) -> float:
            up_RX, *others, out = inputs
            expected = dense.dense_mla_reference(
                up_RX[-4:], *others, first_position=num_keys - 4, scale=SCALE
            )
            found = out.float()[-4:].double()
            return float((found - expected).norm() / expected.norm()) / FP8_ERROR

        seen = num_queries * (first_position + (num_queries + 1) / 2)
        yield Case(
            op="dense_mla",
            name=f"T={num_queries} from {first_position}",
            make=make,
            variants={"gluon": run},
            error=error,
            bytes=HEADS * (num_queries * (dense.QUERY_DIMS * 2 + GROUP) + num_keys * 4 * GROUP),
            flops=2 * seen * HEADS * (dense.QUERY_DIMS + GROUP),
        )


# Indexer logits

LOGITS_PEER_US = {(1, 32768): 3.7, (1, 131072): 5.7, (16, 32768): 21.6, (64, 4096): 8.3}
LOGITS_PEER_US |= {(64, 32768): 72.8, (128, 32768): 139.5}


def _index_inputs(num_queries: int, num_slots: int) -> tuple[Tensor, Tensor, logits.IndexCache]:
    shape = (num_queries, logits.INDEX_HEADS, logits.INDEX_DIMS)
    cache = logits.IndexCache(
        key_SI=torch.randn(num_slots, logits.INDEX_DIMS, device="cuda").to(torch.float8_e4m3fn),
        scale_S=torch.rand(num_slots, device="cuda") + 0.5,
    )
    query_THI = torch.randn(shape, device="cuda").to(torch.float8_e4m3fn)
    return query_THI, torch.randn(shape[:2], device="cuda") / shape[1], cache


def index_logits_decode_cases() -> Iterator[Case]:
    for (num_queries, length), peer_us in LOGITS_PEER_US.items():

        def make(num_queries: int = num_queries, length: int = length) -> Any:
            query_THI, weight_TH, cache = _index_inputs(num_queries, num_queries * length)
            pages_TP = torch.randperm(num_queries * length // 64, device="cuda").view(num_queries, -1).int()
            lengths_T = torch.full((num_queries,), length, dtype=torch.int32, device="cuda")
            return query_THI, weight_TH, cache, pages_TP, lengths_T

        def run(inputs: Any, config: logits.DecodeConfig) -> Tensor:
            return logits.index_logits_decode(*inputs, config=config)

        def error(inputs: Any, got: Tensor) -> float:
            query_THI, weight_TH, cache, pages_TP, lengths_T = inputs
            expected = logits.index_logits_reference(
                query_THI[-1:], weight_TH[-1:], cache, pages_TP[-1:], lengths_T[-1:]
            )
            return scaled_error(got[-1:], expected, 2e-3)

        configs = {
            f"block {block} x {tiles}, {warps} warps, {stages} stages": logits.DecodeConfig(
                block_keys=block, tiles=tiles, num_warps=warps, num_stages=stages
            )
            for block, tiles, warps, stages in (
                ((128, 1, 4, 5), (128, 2, 4, 4), (64, 2, 4, 5))
                if num_queries == 1
                else ((64, 8, 4, 4), (64, 16, 4, 5), (128, 4, 4, 3), (128, 8, 4, 3))
            )
        }
        yield Case(
            op="index_logits_decode",
            name=f"T={num_queries} L={length}",
            make=make,
            variants={name: partial(run, config=config) for name, config in configs.items()},
            error=error,
            bytes=num_queries * length * (128 + 4 + 4),
            flops=2 * num_queries * length * logits.INDEX_HEADS * logits.INDEX_DIMS,
            peer=Peer(name="DeepGEMM", time_us=peer_us),
        )


def index_logits_prefill_cases() -> Iterator[Case]:
    num_queries = 4096
    for length, peer_us in ((8192, 382.5), (32768, 1955.1)):

        def make(length: int = length) -> Any:
            pages_P = torch.randperm(length // 64, device="cuda").int()
            return *_index_inputs(num_queries, length), pages_P

        def run(inputs: Any, config: logits.PrefillConfig, length: int = length) -> Tensor:
            first_length = length - num_queries + 1
            return logits.index_logits_prefill(*inputs, first_length=first_length, config=config)

        def error(inputs: Any, got: Tensor, length: int = length) -> float:
            query_THI, weight_TH, cache, pages_P = inputs
            lengths_T = torch.tensor([length], device="cuda")
            expected = logits.index_logits_reference(
                query_THI[-1:], weight_TH[-1:], cache, pages_P[None], lengths_T
            )
            return scaled_error(got[-1:], expected, 2e-3)

        configs = {
            f"block {block}, {queries} queries, {warps} warps, {stages} stages": logits.PrefillConfig(
                block_keys=block, block_queries=queries, num_warps=warps, num_stages=stages
            )
            for block, warps in ((64, 4), (128, 4), (256, 8), (256, 4))
            for queries, stages in ((64, 3), (256, 3), (64, 2))
        }
        pairs = num_queries * (length - num_queries / 2)
        yield Case(
            op="index_logits_prefill",
            name=f"T={num_queries} L={length}",
            make=make,
            variants={name: partial(run, config=config) for name, config in configs.items()},
            error=error,
            bytes=pairs * 4,
            flops=2 * pairs * logits.INDEX_HEADS * logits.INDEX_DIMS,
            peer=Peer(name="DeepGEMM", time_us=peer_us),
        )


# Top-2048

TOPK_PEER_US = {(1, 32768): 45.1, (1, 131072): 54.5, (64, 32768): 71.5, (64, 131072): 143.4}
TOPK_PEER_US |= {(128, 32768): 100.5}


def select_topk_cases() -> Iterator[Case]:
    for (num_rows, columns), peer_us in TOPK_PEER_US.items():

        def make(num_rows: int = num_rows, columns: int = columns) -> tuple[Tensor, Tensor, Tensor]:
            lengths_T = torch.full((num_rows,), columns, dtype=torch.int32, device="cuda")
            pages_TP = torch.randint(0, 1 << 15, (num_rows, columns // 64), device="cuda").int()
            return torch.randn(num_rows, columns, device="cuda"), lengths_T, pages_TP

        def run(inputs: Any, config: topk.SelectConfig) -> Tensor:
            return topk.select_topk(*inputs, config=config)

        def error(inputs: Any, got: Tensor) -> float:
            return float(not torch.equal(got, topk.select_topk_reference(*inputs))) * 2

        configs = {
            f"chunk {chunk}, {held} and {chosen} a thread": topk.SelectConfig(
                chunk=chunk, per_thread=held, choose_per_thread=chosen
            )
            for chunk, held, chosen in (
                (32768, 32, 32),
                (32768, 32, 16),
                (32768, 32, 8),
                (16384, 32, 16),
            )
            if -(-columns // chunk) * topk.TOPK <= topk.MAX_CHUNK
        }
        yield Case(
            op="select_topk",
            name=f"T={num_rows} L={columns}",
            make=make,
            variants={name: partial(run, config=config) for name, config in configs.items()},
            error=error,
            bytes=num_rows * (columns + 2048) * 4,
            flops=0,
            peer=Peer(name="torch.topk", time_us=peer_us, source="torch 2.11 on an H200 with CUDA graphs"),
        )


CASES: Mapping[str, Callable[[], Iterator[Case]]] = {
    "sparse_mla": sparse_mla_cases,
    "sparse_mla_prefill": sparse_mla_prefill_cases,
    "dense_mla": dense_mla_cases,
    "index_logits_decode": index_logits_decode_cases,
    "index_logits_prefill": index_logits_prefill_cases,
    "select_topk": select_topk_cases,
}
