"""The cache's pages: what they take, and what is read of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.preflight import examine
from cluster.random_model import write_checkpoint
from cluster.spec import ShoalSpec
from model.cache import PAGE_TOKENS, LatentCache, pages_of
from model.config import ModelConfig
from model.memory import cache_values_per_token
from tests.shoals import local_engine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer: it could be served."""
    directory = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(directory, "test", seed=0)
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_mtp_layers", [0, 1])
def test_the_cache_takes_the_bytes_of_the_formula(tiny_v32, tiny_v3, num_mtp_layers, dtype) -> None:
    for directory in (tiny_v32, tiny_v3):
        config = replace(ModelConfig.from_file(directory / "config.json"), num_mtp_layers=num_mtp_layers)
        cache = LatentCache(config, 3, dtype)
        taken = sum(slots.nbytes for slots in (*cache.latent_SC, *cache.index_SI))
        assert taken == 3 * PAGE_TOKENS * cache.bytes_per_token
        assert cache.bytes_per_token == cache_values_per_token(config) * dtype.itemsize


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("draft_tokens", [0, 1])
def test_what_is_told_before_the_start_is_what_the_engine_tells(checkpoint, dtype, draft_tokens) -> None:
    told = examine(ShoalSpec(model=str(checkpoint), dtype=dtype, draft_tokens=draft_tokens))
    engine = local_engine(checkpoint, getattr(torch, dtype), num_pages=4, draft_tokens=draft_tokens)
    assert engine.stats()["cache_bytes_per_token"] == told.cache_bytes_per_token
    assert engine.stats()["cache_tokens"] == 3 * PAGE_TOKENS


def test_pages_hold_what_was_written_to_their_slots() -> None:
    slots_SX = torch.randn(6 * PAGE_TOKENS, 5)
    held = pages_of(slots_SX, torch.tensor([[4, 1], [0, 4]]))
    expected = slots_SX.view(6, PAGE_TOKENS, 5)
    assert torch.equal(held[0], torch.cat([expected[4], expected[1]]))
    assert torch.equal(held[1], torch.cat([expected[0], expected[4]]))
