"""Indexer logits: the reference's numbers up to each row's length, and nothing behind it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from kernels import index_logits as ops
from kernels.index_logits import (
    DecodeConfig,
    PrefillConfig,
    index_logits_decode,
    index_logits_prefill,
    index_logits_reference,
)
from model.indexer import index_scores
from tests.gpu.ahead import Build, resources
from tests.gpu.attention_inputs import index_cache, index_queries, page_tables
from tests.gpu.interpreter import interpreting

# E4M3 products are exact; what is left is fp32 (and the tensor core's narrower) sums of about 1
TOLERANCE = {"rtol": 1e-3, "atol": 2e-3, "equal_nan": True}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TYPES = {"query_ptr": "*fp8e4nv", "weight_ptr": "*fp32", "key_ptr": "*fp8e4nv", "scale_ptr": "*fp32"}
TYPES |= {"pages_ptr": "*i32", "logits_ptr": "*fp32", "max_pages": "i32"}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the launchers allocate is NaN until it is written."""
    empty = Tensor.new_empty

    def poison(tensor: Tensor, *size: int, **how: object) -> Tensor:
        made = empty(tensor, *size, **how)
        return made.fill_(torch.nan) if made.dtype == torch.float32 else made

    monkeypatch.setattr(Tensor, "new_empty", poison)


def test_decode_interpreted_is_the_reference() -> None:
    cache, (query_THI, weight_TH) = index_cache(1024), index_queries(3)
    pages_TP, lengths_T = page_tables(3, 6, 16), torch.tensor([384, 130, 1], dtype=torch.int32)
    config = DecodeConfig(block_keys=64, tiles=2)
    with interpreting():
        logits_TL = index_logits_decode(query_THI, weight_TH, cache, pages_TP, lengths_T, config=config)
    expected_TL = index_logits_reference(query_THI, weight_TH, cache, pages_TP, lengths_T)
    torch.testing.assert_close(logits_TL.double(), expected_TL, **TOLERANCE)


def test_prefill_interpreted_is_the_reference() -> None:
    cache, (query_THI, weight_TH) = index_cache(1024), index_queries(70)
    pages_P = page_tables(1, 4, 16)[0]
    config = PrefillConfig(block_keys=128, block_queries=32)
    with interpreting():
        logits_TL = index_logits_prefill(
            query_THI, weight_TH, cache, pages_P, first_length=101, config=config
        )
    lengths_T = torch.arange(101, 171, dtype=torch.int32)
    expected_TL = index_logits_reference(query_THI, weight_TH, cache, pages_P.expand(70, -1), lengths_T)
    torch.testing.assert_close(logits_TL.double(), expected_TL, **TOLERANCE)


def test_the_reference_scores_as_the_model_does() -> None:
    cache, (query_THI, weight_TH) = index_cache(1024), index_queries(2)
    pages_TP, lengths_T = page_tables(2, 4, 16), torch.full((2,), 256, dtype=torch.int32)
    keys_SI = cache.key_SI.float() * cache.scale_S[:, None]
    ours_TL = index_logits_reference(query_THI, weight_TH, cache, pages_TP, lengths_T).float()
    models_TL = index_scores(query_THI.float(), weight_TH, keys_SI, pages_TP.long())
    torch.testing.assert_close(ours_TL, models_TL, rtol=1e-4, atol=1e-4)


def test_a_chunk_that_sees_more_than_its_pages_is_refused() -> None:
    cache, (query_THI, weight_TH) = index_cache(64), index_queries(2)
    with pytest.raises(ValueError, match="first_length is 64 with 2 queries"):
        index_logits_prefill(query_THI, weight_TH, cache, torch.zeros(1, dtype=torch.int32), first_length=64)


@pytest.mark.ahead
def test_every_configuration_fits_an_sm_90() -> None:
    builds = [
        Build(
            module=ops.__name__,
            kernel="index_logits_decode_kernel",
            types=TYPES | {"lengths_ptr": "*i32"},
            constants={"BLOCK_N": config.block_keys, "TILES": config.tiles},
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        for config in {config for _, _, config in ops.DECODE}
    ]
    builds.append(
        Build(
            module=ops.__name__,
            kernel="index_logits_prefill_kernel",
            types=TYPES | {"num_queries": "i32", "first_length": "i32"},
            constants={"BLOCK_N": ops.PREFILL.block_keys, "BLOCK_Q": ops.PREFILL.block_queries},
            num_warps=ops.PREFILL.num_warps,
            num_stages=ops.PREFILL.num_stages,
        )
    )
    for taken in resources(builds):
        taken.check(wgmma="m64n64k32 e4m3")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("num_queries", [1, 5, 64, 256])
def test_decode_on_the_device_is_the_reference_and_knows_no_batch(num_queries: int) -> None:
    cache, (query_THI, weight_TH) = index_cache(1 << 16, "cuda"), index_queries(num_queries, "cuda")
    pages_TP = page_tables(num_queries, 128, 1024, "cuda")
    lengths_T = torch.randint(0, 8193, (num_queries,), dtype=torch.int32, device="cuda")
    config = ops.decode_config_for(*pages_TP.shape)
    logits_TL = index_logits_decode(query_THI, weight_TH, cache, pages_TP, lengths_T, config=config)
    expected_TL = index_logits_reference(query_THI, weight_TH, cache, pages_TP, lengths_T)
    torch.testing.assert_close(logits_TL.double(), expected_TL, **TOLERANCE)
    one, seen = slice(num_queries - 1, None), int(lengths_T[-1])
    for _, _, alone in ops.DECODE:
        alone_TL = index_logits_decode(
            query_THI[one], weight_TH[one], cache, pages_TP[one], lengths_T[one], config=alone
        )
        assert torch.equal(alone_TL[0, :seen], logits_TL[-1, :seen])


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("num_queries", "first_length"), [(1, 1), (65, 4000), (300, 1)])
def test_prefill_on_the_device_is_the_reference(num_queries: int, first_length: int) -> None:
    cache, (query_THI, weight_TH) = index_cache(1 << 16, "cuda"), index_queries(num_queries, "cuda")
    pages_P = page_tables(1, 128, 1024, "cuda")[0]
    logits_TL = index_logits_prefill(query_THI, weight_TH, cache, pages_P, first_length=first_length)
    lengths_T = first_length + torch.arange(num_queries, dtype=torch.int32, device="cuda")
    expected_TL = index_logits_reference(
        query_THI, weight_TH, cache, pages_P.expand(num_queries, -1), lengths_T
    )
    torch.testing.assert_close(logits_TL.double(), expected_TL, **TOLERANCE)
