"""Sparse MLA, decode and prefill: the reference's numbers, whoever else is in the batch.

The interpreter knows no Gluon: without a device that kernel is compiled, not run.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from kernels import sparse_mla as decode
from kernels import sparse_mla_prefill as prefill
from kernels.sparse_mla import QuantizedCache, SparseMlaConfig, sparse_mla, sparse_mla_reference
from kernels.sparse_mla_prefill import sparse_mla_prefill, sparse_mla_prefill_reference
from kernels.unpage_latents import unpage_latents, unpage_latents_reference
from model.mla import attend_keys
from tests.gpu.ahead import Build, resources
from tests.gpu.attention_inputs import NAN, chosen_slots, latent_cache, queries
from tests.gpu.interpreter import interpreting

SCALE = 192**-0.5
# fp16 weights of the softmax (2^-11), bf16 results (2^-9), of sums that are about 1 at most
TOLERANCE = {"rtol": 2**-8, "atol": 2**-8}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TYPES = {"query_ptr": "*fp16", "slots_ptr": "*i32", "out_ptr": "*bf16", "scale_log2": "fp32"}


def dequantized(cache: QuantizedCache) -> Tensor:
    num_pages = len(cache.latent_SC) // 64
    return unpage_latents_reference(cache, torch.arange(num_pages, device=cache.latent_SC.device))


@pytest.mark.parametrize("splits", [1, 2])
def test_decode_interpreted_is_the_reference(splits: int) -> None:
    cache, query_TNC = latent_cache(256), queries(3)
    slots_TJ = chosen_slots([128, 70, 0], 128, 256)
    with interpreting():
        out_TNC = sparse_mla(query_TNC, slots_TJ, cache, scale=SCALE, config=SparseMlaConfig(splits=splits))
    expected_TNC = sparse_mla_reference(query_TNC, slots_TJ, cache, scale=SCALE)
    torch.testing.assert_close(out_TNC.double(), expected_TNC, **TOLERANCE)
    assert not out_TNC[2].any(), "a query without keys gathers nothing"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_prefill_interpreted_is_the_reference(dtype: torch.dtype) -> None:
    keys_SC, query_TNC = dequantized(latent_cache(256)).to(dtype), queries(2).to(dtype)
    slots_TJ = chosen_slots([128, 70], 128, 256)
    with interpreting():
        out_TNC = sparse_mla_prefill(query_TNC, slots_TJ, keys_SC, scale=SCALE)
    expected_TNC = sparse_mla_prefill_reference(query_TNC, slots_TJ, keys_SC, scale=SCALE)
    wide = {"rtol": 2**-6, "atol": 2**-7} if dtype == torch.bfloat16 else TOLERANCE
    torch.testing.assert_close(out_TNC.double(), expected_TNC, **wide)


@pytest.mark.parametrize("splits", [1, 2])
def test_prefill_interpreted_has_the_bits_of_decode(splits: int) -> None:
    cache, query_TNC = latent_cache(256), queries(3)
    slots_TJ = chosen_slots([128, 70, 0], 128, 256)
    with interpreting():
        few_TNC = sparse_mla(query_TNC, slots_TJ, cache, scale=SCALE, config=SparseMlaConfig(splits=splits))
        many_TNC = sparse_mla_prefill(query_TNC, slots_TJ, dequantized(cache), scale=SCALE, splits=splits)
    assert torch.equal(few_TNC, many_TNC)


def test_latents_leave_their_pages_in_order(device: torch.device) -> None:
    cache = latent_cache(256, device.type)
    pages_P = torch.tensor([2, 0, 3], dtype=torch.int32, device=device)
    keys_SC = unpage_latents(cache, pages_P)
    assert torch.equal(keys_SC, unpage_latents_reference(cache, pages_P))
    assert torch.equal(keys_SC[64:128, 512:], cache.rotary_SR[:64])


def test_the_reference_is_what_the_model_computes() -> None:
    cache, query_TNC = latent_cache(256), queries(2, heads=8)
    slots_TJ = chosen_slots([128, 128], 128, 256)
    keys_TJC = dequantized(cache).double()[slots_TJ.long()]
    ours_TNC = sparse_mla_reference(query_TNC, slots_TJ, cache, scale=SCALE)
    models_TNC = attend_keys(query_TNC.double(), keys_TJC, None, scale=SCALE, value_dims=512)
    torch.testing.assert_close(ours_TNC, models_TNC, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused_with_words() -> None:
    cache, query_TNC, slots_TJ = latent_cache(64), queries(1), chosen_slots([5], 64, 64)
    with pytest.raises(ValueError, match=r"slots_TJ has 64 columns.*pad with -1"):
        sparse_mla(query_TNC, slots_TJ, cache, scale=SCALE, config=SparseMlaConfig(splits=2))
    with pytest.raises(ValueError, match=r"query_TNC is torch\.float32"):
        sparse_mla(query_TNC.float(), slots_TJ, cache, scale=SCALE, config=SparseMlaConfig(splits=1))


def decode_build(config: SparseMlaConfig, *, gluon: bool) -> Build:
    """Of one of the two decode kernels: on the device, config.gluon chooses."""
    cache_types = {"latent_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "rotary_ptr": "*fp16", "lse_ptr": "*fp32"}
    options = decode.kernel_options(config, gluon=gluon)
    num_warps, num_stages = options.pop("num_warps"), options.pop("num_stages")
    return Build(
        module="kernels.sparse_mla_gluon" if gluon else decode.__name__,
        kernel="sparse_mla_gluon_kernel" if gluon else "sparse_mla_kernel",
        types=TYPES | cache_types | ({} if config.splits == 1 else {"out_ptr": "*fp16"}),
        constants={"HEADS": 128, "SLOTS": 2048, "SPLITS": config.splits, **options},
        num_warps=num_warps,
        num_stages=num_stages,
    )


def prefill_build(splits: int, *, gluon: bool) -> Build:
    config = prefill.CONFIG
    own = {"SPLITS": splits, "BLOCK_N": config.block_keys}
    if gluon:
        own = {
            "SHARES": splits,
            "WEIGHER_REGISTERS": config.weigher_registers,
            "PRODUCER_REGISTERS": config.producer_registers,
        }
    return Build(
        module="kernels.sparse_mla_prefill_gluon" if gluon else prefill.__name__,
        kernel="sparse_mla_prefill_gluon_kernel" if gluon else "sparse_mla_prefill_kernel",
        types=TYPES
        | {"keys_ptr": "*fp16", "lse_ptr": "*fp32", "out_ptr": "*bf16" if splits == 1 else "*fp16"},
        constants={"HEADS": 128, "SLOTS": 2048, **own},
        num_warps=4 if gluon else config.num_warps,
        num_stages=1 if gluon else config.num_stages,
    )


@pytest.mark.ahead
def test_every_configuration_fits_an_sm_90() -> None:
    configs = {decode.EXACT, *(config for _, config in decode.THROUGHPUT)}
    builds = [decode_build(config, gluon=False) for config in configs]
    (_, one_tile), *_, (_, unsplit) = decode.THROUGHPUT  # what Gluon's own code depends on
    builds += [decode_build(config, gluon=True) for config in (one_tile, decode.EXACT, unsplit)]
    builds += [prefill_build(splits, gluon=gluon) for splits in (1, 4) for gluon in (False, True)]
    for taken in resources(builds):
        taken.check(wgmma="m64n64k16 f16")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("num_queries", [1, 3, 16, 64, 256])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("gluon", [False, True])
def test_decode_on_the_device_is_the_reference(num_queries: int, exact: bool, gluon: bool) -> None:
    cache, query_TNC = latent_cache(8192, "cuda"), queries(num_queries, 128, "cuda")
    counts = [*torch.randint(1, 2049, (num_queries,)).tolist(), 0, 1, 2047][-num_queries:]
    slots_TJ = chosen_slots(counts, 2048, 8192, "cuda")
    config = replace(decode.config_for(num_queries, exact=exact), gluon=gluon)
    torch.full((1 << 28,), NAN, device="cuda")  # what is allocated next is not zero
    out_TNC = sparse_mla(query_TNC, slots_TJ, cache, scale=SCALE, config=config)
    expected_TNC = sparse_mla_reference(query_TNC, slots_TJ, cache, scale=SCALE)
    torch.testing.assert_close(out_TNC.double(), expected_TNC, **TOLERANCE)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("gluon", [False, True])
def test_exact_decode_gives_a_row_the_same_bits_in_any_batch(gluon: bool) -> None:
    cache, query_TNC = latent_cache(8192, "cuda"), queries(256, 128, "cuda")
    slots_TJ = chosen_slots(torch.randint(1, 2049, (256,)).tolist(), 2048, 8192, "cuda")
    whole_TNC = sparse_mla(query_TNC, slots_TJ, cache, scale=SCALE, config=replace(decode.EXACT, gluon=gluon))
    for num_queries in (1, 2, 7, 64, 255):
        rows = slice(256 - num_queries, 256)
        config = replace(decode.config_for(num_queries, exact=True), gluon=gluon)
        part_TNC = sparse_mla(query_TNC[rows], slots_TJ[rows], cache, scale=SCALE, config=config)
        assert torch.equal(part_TNC, whole_TNC[rows])


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("num_queries", [1, 17, 300])
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("gluon", [False, True])
def test_prefill_on_the_device_is_the_reference(num_queries: int, splits: int, gluon: bool) -> None:
    cache, query_TNC = latent_cache(8192, "cuda"), queries(num_queries, 128, "cuda")
    keys_SC = dequantized(cache)
    counts = [*torch.randint(1, 2049, (num_queries,)).tolist(), 0, 1, 512, 513, 2047][-num_queries:]
    slots_TJ = chosen_slots(counts, 2048, 8192, "cuda")
    config = replace(prefill.CONFIG, gluon=gluon)
    torch.full((1 << 28,), NAN, device="cuda")
    out_TNC = sparse_mla_prefill(query_TNC, slots_TJ, keys_SC, scale=SCALE, splits=splits, config=config)
    expected_TNC = sparse_mla_prefill_reference(query_TNC, slots_TJ, keys_SC, scale=SCALE)
    torch.testing.assert_close(out_TNC.double(), expected_TNC, **TOLERANCE)
    few = SparseMlaConfig(splits=splits, gluon=gluon)
    few_TNC = sparse_mla(query_TNC, slots_TJ, cache, scale=SCALE, config=few)
    assert torch.equal(few_TNC, out_TNC), "prefill and decode differ in bits"
