"""Prefill at true width gives every row the bits that decode gives it, however prompts are cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from kernels.fp8_rows import Fp8Weight
from model import fp8_prefill
from model.cache import PAGE_TOKENS
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_prefill import (
    MOST_LOGITS,
    MOST_QUERIES,
    PrefillStep,
    Span,
    check_spans,
    query_blocks,
    rows_by_heads,
)
from model.fp8_random import RandomLayers
from model.fp8_step import DecodeStep, StepInputs
from model.fp8_walk import WalkTables
from model.fp8_weights import Fp8Dense, Fp8Layer
from model.true_width import true_width

LENGTHS = (2200, 700, 90)  # one sees more than it may choose, one less, one more than a page
PAGES = -(-max(LENGTHS) // PAGE_TOKENS)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: true widths")


def span(num_rows: int, first_position: int, first_row: int = 0, pages: int = 2048) -> Span:
    pages_P = torch.arange(pages, dtype=torch.int32)
    return Span(first_row=first_row, num_rows=num_rows, first_position=first_position, pages_P=pages_P)


def test_blocks_of_queries_are_all_tokens_once_and_bounded() -> None:
    for own in (span(1, 0), span(5000, 0), span(8192, 24576), span(3000, 120000), span(10, 2047)):
        blocks = query_blocks(own)
        assert [0, *(end for _, end in blocks)] == [*(first for first, _ in blocks), own.num_rows]
        for first, end in blocks:
            last = own.first_position + end
            assert first < end <= first + MOST_QUERIES
            assert last <= 2048 or (end - first) * (-(-last // PAGE_TOKENS) * PAGE_TOKENS) <= MOST_LOGITS
            assert last <= 2048 or own.first_position + first >= 2048, "who sees all needs no logits"


def test_those_who_attend_by_heads_see_all_and_are_many_enough() -> None:
    wanted = {
        (1, 0): 1, (90, 0): 90, (2048, 0): 2048, (4096, 0): 2048, (1000, 1048): 1000, (8192, 1000): 1048,
        (300, 1748): 300, (250, 1800): 0, (5000, 1900): 0, (1, 2047): 0, (10, 2048): 0, (4096, 8192): 0,
    }  # fmt: skip
    found = {of: rows_by_heads(span(*of)) for of in wanted}
    assert found == wanted
    for (num_rows, first_position), dense in wanted.items():
        assert dense <= num_rows and (not dense or first_position + dense <= 2048)
        if dense < num_rows:
            blocks = query_blocks(span(num_rows, first_position), dense)
            assert blocks[0][0] == dense and blocks[-1][1] == num_rows, "the others attend in latent space"


def test_spans_that_do_not_fit_are_refused_with_words() -> None:
    with pytest.raises(ValueError, match="9 rows: made for at most 8"):
        check_spans([span(9, 0)], 9, 8, 64)
    with pytest.raises(ValueError, match="begins at row 5, not 4"):
        check_spans([span(4, 0), span(4, 0, first_row=5)], 9, 16, 64)
    with pytest.raises(ValueError, match="ends at position 65"):
        check_spans([span(1, 64, pages=1)], 1, 8, 128)
    with pytest.raises(ValueError, match="1 spans have 3 rows: the chunk has 4"):
        check_spans([span(3, 0)], 4, 8, 64)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return true_width(moe_layers=1, num_experts=64)


@pytest.fixture(scope="module")
def layers(config: ModelConfig) -> list[Fp8Layer]:
    maker = RandomLayers(config, torch.device("cuda"))
    return [maker.layer(index) for index in range(config.num_layers)]


@pytest.fixture(scope="module")
def prompts(config: ModelConfig) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(length, config.hidden_size, device="cuda").bfloat16() for length in LENGTHS]


def pages_of(sequence: int) -> Tensor:
    """Backwards, so that order in the pool is not order in the sequence."""
    end = (sequence + 1) * PAGES
    return torch.arange(end, end - PAGES, -1, dtype=torch.int32, device="cuda")


@pytest.fixture(scope="module")
def few(config: ModelConfig, layers: list[Fp8Layer], prompts: list[Tensor]) -> list[Tensor]:
    return decoded(config, layers, prompts)


def attention_of(layer: Fp8Layer) -> Fp8Layer:
    """The layer with an MLP that adds nothing."""
    assert isinstance(layer.ffn, Fp8Dense)
    down = layer.ffn.down
    nothing = torch.zeros_like(down.values_NK.view(torch.uint8)).view(down.values_NK.dtype)
    return replace(layer, ffn=replace(layer.ffn, down=Fp8Weight(nothing, down.scale_NK)))


@torch.inference_mode()
def decoded(config: ModelConfig, layers: list[Fp8Layer], prompts: list[Tensor]) -> list[Tensor]:
    """Token by token, side by side: each prompt's residual [T, D] after the layers, then its latents."""
    rows = len(prompts)
    cache = Fp8Cache(config, rows * PAGES + 1, torch.device("cuda"))
    pages_RP = torch.stack([pages_of(row) for row in range(rows)])
    ints = {"dtype": torch.int32, "device": "cuda"}
    inputs = StepInputs(
        hidden_RD=torch.zeros(rows, config.hidden_size, dtype=torch.bfloat16, device="cuda"),
        positions_R=torch.zeros(rows, **ints),
        slots_R=torch.full((rows,), -1, **ints),
        lengths_R=torch.zeros(rows, **ints),
        pages_RP=pages_RP,
    )
    step = DecodeStep(config, inputs, WalkTables(config, PAGES * PAGE_TOKENS, torch.device("cuda")))
    residuals = [torch.empty_like(prompt) for prompt in prompts]
    norm_D = torch.ones(config.hidden_size, device="cuda")
    for position in range(max(map(len, prompts))):
        for row, prompt in enumerate(prompts):
            is_there = position < len(prompt)
            inputs.hidden_RD[row] = prompt[position] if is_there else 0
            slot = pages_RP[row, position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
            inputs.slots_R[row] = slot if is_there else -1
            inputs.lengths_R[row] = position + 1 if is_there else 0
        inputs.positions_R.fill_(position)
        step.run(layers, cache, norm_D)
        for row, residual in enumerate(residuals):
            if position < len(residual):
                residual[position] = inputs.hidden_RD[row]
    return residuals + planes(cache)


@torch.inference_mode()
def prefilled(
    config: ModelConfig, layers: list[Fp8Layer], prompts: list[Tensor], chunk: int, *, exact: bool = True
) -> list[Tensor]:
    """The same by chunks of `chunk` rows, prompts one after the other."""
    cache = Fp8Cache(config, len(prompts) * PAGES + 1, torch.device("cuda"))
    step = PrefillStep(
        config, chunk, WalkTables(config, PAGES * PAGE_TOKENS, torch.device("cuda")), exact=exact
    )
    hidden_TD = torch.cat(prompts)
    norm_D = torch.ones(config.hidden_size, device="cuda")
    for first in range(0, len(hidden_TD), chunk):
        end, spans, begins = min(first + chunk, len(hidden_TD)), [], 0
        for sequence, prompt in enumerate(prompts):
            own_first, own_end = max(first, begins), min(end, begins + len(prompt))
            if own_first < own_end:
                spans.append(
                    Span(
                        first_row=own_first - first,
                        num_rows=own_end - own_first,
                        first_position=own_first - begins,
                        pages_P=pages_of(sequence),
                    )
                )
            begins += len(prompt)
        step.run(hidden_TD[first:end], spans, layers, cache, norm_D)
    return [*hidden_TD.split([len(prompt) for prompt in prompts]), *planes(cache)]


def planes(cache: Fp8Cache) -> list[Tensor]:
    """Everything that was written, as bytes; page 0 belongs to nobody."""
    found: list[Tensor] = []
    for latent, key in zip(cache.latents, cache.keys, strict=True):
        found += [latent.latent_SC, latent.scale_SG, latent.rotary_SR, key.key_SI, key.scale_S]
    return [plane[PAGE_TOKENS:].view(torch.uint8) for plane in found]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("chunk", [4096, 1000])
def test_prefill_gives_the_bits_of_decode(
    config: ModelConfig, layers: list[Fp8Layer], prompts: list[Tensor], few: list[Tensor], chunk: int
) -> None:
    many = prefilled(config, layers, prompts, chunk)
    assert all(torch.isfinite(residual).all() for residual in few[: len(prompts)])
    for one, other in zip(few, many, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("chunk", [4096, 1000])
def test_attending_by_heads_is_near_latent_space_in_every_row(
    config: ModelConfig,
    layers: list[Fp8Layer],
    prompts: list[Tensor],
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Attention alone, 2 to 3 % apart by FP8; one head of 128 that is wrong would make 12 %."""
    low = [prompt * 2**-8 for prompt in prompts]  # so that the residual rounds off little of what is added
    by_heads = prefilled(config, [attention_of(layers[0])], low, chunk, exact=False)
    monkeypatch.setattr(fp8_prefill, "rows_by_heads", lambda _span: 0)
    in_latent_space = prefilled(config, [attention_of(layers[0])], low, chunk, exact=False)
    for one, other, prompt in zip(by_heads, in_latent_space, low, strict=False):
        added, expected = one.float() - prompt.float(), other.float() - prompt.float()
        error_T = (added - expected).norm(dim=-1) / expected.norm(dim=-1)
        wrong = (error_T.nan_to_num(nan=9.0) > 0.08).nonzero().flatten().tolist()
        assert not wrong, (
            f"{len(wrong)} of {len(one)} rows beyond, from {wrong[0]} to {wrong[-1]}; the worst "
            f"{float(error_T.max()):.3g}, the mean {float(error_T.mean()):.3g}"
        )
        assert not torch.equal(one[:90], other[:90]), "both went the same way"
    for one, other in zip(by_heads[len(prompts) :], in_latent_space[len(prompts) :], strict=True):
        assert torch.equal(one, other), "the first layer's cache knows no attention"


@pytest.mark.gpu
@needs_cuda
def test_prefill_in_throughput_mode_is_near(
    config: ModelConfig, layers: list[Fp8Layer], prompts: list[Tensor], few: list[Tensor]
) -> None:
    """Sums in another order flip a rounding to FP8 here and there, and with it now and then an expert."""
    many = prefilled(config, layers, prompts, 4096, exact=False)
    for one, other in zip(few[: len(prompts)], many, strict=False):
        assert float((one.float() - other.float()).norm() / one.float().norm()) < 0.2
