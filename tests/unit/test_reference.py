"""Our fp32 model equals transformers' to 1e-5, and its greedy tokens exactly, past index_topk."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.scheduler import SchedulerLimits
from actors.step import forward
from kernels.fp8 import dequantize_blocks_reference
from model.batch import Chunk
from model.cache import PAGE_TOKENS, LatentCache
from model.checkpoint import Checkpoint
from model.decoder import Decoder
from model.load import load_decoder
from model.sampling import Sampling
from model.tiny import write_tiny
from router.exchange import Exchange
from tests.shoals import CONTEXT, generate, local_engine, local_parts

PROMPT = 150  # well past the tiny models' index_topk of 32
NEW = 64  # into another page
RELATIVE = 1e-5


def reference(transformers: ModuleType, directory: Path) -> Any:
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def prompt_ids() -> list[int]:
    return torch.randint(16, 272, (PROMPT,), generator=torch.Generator().manual_seed(5)).tolist()


def logits_of_every_token(parts: tuple[Decoder, Exchange], token_ids: list[int], cuts: list[int]) -> Tensor:
    """Logits after each token, the sequence computed in chunks that end at `cuts`."""
    decoder, exchange = parts
    config = decoder.config
    cache = LatentCache(config, 2 + len(token_ids) // PAGE_TOKENS, torch.float32)
    pages = list(range(1, cache.num_pages))
    rows = []
    start = 0
    for end in cuts:
        chunk = Chunk(token_ids=token_ids[start:end], start=start, pages=pages, wants_logits=True)
        hidden_ND = forward(decoder, [chunk], cache, exchange)
        rows.append(decoder.logits(hidden_ND, torch.arange(end - start)))
        start = end
    return torch.cat(rows)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module", params=["v32", "v3"])
def checkpoint(request: pytest.FixtureRequest, tiny_v32: Path, tiny_v3: Path) -> Path:
    return tiny_v32 if request.param == "v32" else tiny_v3


@pytest.fixture(scope="module")
def model(transformers: ModuleType, checkpoint: Path) -> Any:
    return reference(transformers, checkpoint)


def test_logits_equal_transformers_in_prefill_chunks_and_decode(checkpoint: Path, model: Any) -> None:
    ids = prompt_ids()
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0]
    chunked = [64, 128, PROMPT]
    decoded = [100, *range(101, PROMPT + 1)]
    parts = local_parts(checkpoint)
    for cuts in ([PROMPT], chunked, decoded):
        assert relative(logits_of_every_token(parts, ids, cuts), theirs) < RELATIVE


def test_greedy_tokens_equal_transformers_for_64_steps(checkpoint: Path, model: Any) -> None:
    ids = prompt_ids()
    with torch.no_grad():
        output = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, PROMPT, dtype=torch.int64),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            pad_token_id=2,
        )
    # min_new_tokens bans the end of text there; the same ban here.
    greedy = Sampling(max_tokens=NEW, min_tokens=NEW, temperature=0.0)
    engine = local_engine(checkpoint, limits=SchedulerLimits(chunk_tokens=64))
    assert generate(engine, [ids], greedy)[0].token_ids == output[0, PROMPT:].tolist()


def test_an_fp8_checkpoint_serves_its_own_dequantisation(tmp_path: Path) -> None:
    """Every ragged block: the loader's weights are the slow reference's, bit for bit."""
    write_tiny(tmp_path, preset="test", seed=9, fp8=True)
    checkpoint = Checkpoint.open(tmp_path)
    reader = checkpoint.reader()
    block = checkpoint.config.fp8_block
    assert block is not None
    scaled = [name for name in checkpoint.tensors if name.endswith("_scale_inv")]
    assert scaled
    for scale_name in scaled:
        name = scale_name.removesuffix("_scale_inv")
        expected = dequantize_blocks_reference(
            reader.read_raw(name), reader.read_raw(scale_name), block, torch.float32
        )
        assert torch.equal(reader.read(name, torch.float32), expected)
    assert load_decoder(reader, checkpoint.config, torch.float32, CONTEXT).config == checkpoint.config
    assert len(generate(local_engine(tmp_path), [prompt_ids()], Sampling(max_tokens=4))[0].token_ids) > 0
