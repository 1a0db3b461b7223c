"""Attention over pages: by definition, and the same bits whoever else is asked about."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels.attend_rows import MOST_SHARING, PAGE, attend_pages, attend_slots
from kernels.compiled import IS_COMPILED
from kernels.latent_rows import (
    TokenNorms,
    Turns,
    keep_tokens,
    keep_tokens_reference,
    turn_heads,
)
from kernels.rope import angle_tables, rotate
from model.cache import PAGE_TOKENS

pytestmark = pytest.mark.skipif(not IS_COMPILED, reason="no numba")

SHAPES = ((8, 576, 512), (5, 40, 32), (3, 12, 8), (1, 64, 48))  # heads, dims, values: tiles and what is left
PAGES = 6


@dataclass(frozen=True, kw_only=True)
class Past:
    """latent_SC: of pages in no order."""

    latent_SC: Tensor
    pages_P: Tensor
    query_QNC: Tensor
    num_keys_Q: Tensor
    values: int

    @property
    def scale(self) -> float:
        return float(self.query_QNC.shape[2] ** -0.5)

    def attend(self, queries: slice, num_keys_Q: Tensor | None = None) -> Tensor:
        query_QNC = self.query_QNC[queries]
        out_QNV = query_QNC.new_empty(*query_QNC.shape[:2], self.values)
        counts = self.num_keys_Q[queries].clone() if num_keys_Q is None else num_keys_Q
        attend_pages(query_QNC, self.latent_SC, self.pages_P[None], counts, out_QNV, scale=self.scale)
        return out_QNV

    def slots(self, num_keys: int) -> Tensor:
        return (self.pages_P[:, None] * PAGE + torch.arange(PAGE)).flatten()[:num_keys]

    def by_definition(self, query: int) -> Tensor:
        keys = self.latent_SC[self.slots(int(self.num_keys_Q[query]))].double()
        shares = torch.softmax(self.query_QNC[query].double() @ keys.t() * self.scale, -1)
        return shares @ keys[:, : self.values]


def past_of(heads: int, dims: int, values: int, num_queries: int = MOST_SHARING + 3) -> Past:
    generator = torch.Generator().manual_seed(dims)
    last = PAGES * PAGE - 7
    return Past(
        latent_SC=torch.randn(2 * PAGES * PAGE, dims, generator=generator),
        pages_P=torch.randperm(2 * PAGES, generator=generator)[:PAGES],
        query_QNC=torch.randn(num_queries, heads, dims, generator=generator),
        num_keys_Q=torch.arange(last - num_queries, last) + 1,
        values=values,
    )


def test_pages_are_the_caches() -> None:
    assert PAGE == PAGE_TOKENS


@pytest.mark.parametrize("shape", SHAPES)
def test_a_query_gets_what_softmax_attention_is_defined_to_give(shape: tuple[int, int, int]) -> None:
    past = past_of(*shape)
    got = past.attend(slice(None))
    for query in range(len(got)):
        expected = past.by_definition(query).float()
        torch.testing.assert_close(got[query], expected, rtol=1e-5, atol=1e-6)  # sums of 384 fp32 products


@pytest.mark.parametrize("shape", SHAPES)
def test_a_querys_bits_do_not_depend_on_who_shares_its_pages_or_that_they_are_copied(
    shape: tuple[int, int, int],
) -> None:
    past = past_of(*shape)
    together = past.attend(slice(None))
    for query in (0, 1, MOST_SHARING - 1, MOST_SHARING, len(together) - 1):
        own = slice(query, query + 1)
        assert torch.equal(past.attend(own), together[own])
        out = torch.empty_like(together[own])
        slots_QJ = past.slots(int(past.num_keys_Q[query]))[None]
        attend_slots(past.query_QNC[own], past.latent_SC, slots_QJ, out, scale=past.scale)
        assert torch.equal(out, together[own])


def test_queries_of_different_sequences_have_pages_of_their_own() -> None:
    past = past_of(4, 40, 32, num_queries=2)
    other = past.pages_P.flip(0)
    both = torch.stack([past.pages_P, other])
    out = torch.empty(2, 4, 32)
    attend_pages(past.query_QNC, past.latent_SC, both, past.num_keys_Q, out, scale=past.scale)
    assert torch.equal(out[:1], past.attend(slice(0, 1)))
    alone = torch.empty(1, 4, 32)
    attend_pages(
        past.query_QNC[1:], past.latent_SC, other[None], past.num_keys_Q[1:].clone(), alone, scale=past.scale
    )
    assert torch.equal(out[1:], alone) and not torch.equal(alone, past.attend(slice(1, 2)))


def test_what_lies_behind_a_querys_keys_is_never_read() -> None:
    past = past_of(4, 40, 32)
    expected = past.attend(slice(0, 1))
    past.latent_SC[past.slots(PAGES * PAGE)[int(past.num_keys_Q[0]) :]] = float("nan")
    assert torch.equal(past.attend(slice(0, 1)), expected)


def test_a_key_that_is_not_finite_shows() -> None:
    past = past_of(4, 40, 32)
    past.latent_SC[past.slots(9)[-1], 3] = float("nan")
    assert past.attend(slice(0, 2)).isnan().all()


def norms_of(rank: int, latent: int, index: int) -> TokenNorms:
    generator = torch.Generator().manual_seed(rank + latent)
    return TokenNorms(
        query_K=torch.randn(rank, generator=generator) if rank else None,
        latent_C=torch.randn(latent, generator=generator),
        index_weight_I=torch.randn(index, generator=generator) if index else None,
        index_bias_I=torch.randn(index, generator=generator) if index else None,
        eps=1e-6,
        index_eps=1e-5,
    )


def turns_of(num_tokens: int, rotary: int) -> Turns:
    angles = torch.outer(torch.arange(num_tokens) + 5.0, torch.rand(rotary // 2) + 0.01)
    cos_TR, sin_TR = angle_tables(angles)
    return Turns(cos_T1R=cos_TR[:, None], sin_T1R=sin_TR[:, None])


@pytest.mark.parametrize(("rank", "latent", "index"), [(48, 32, 16), (0, 32, 16), (50, 30, 0)])
def test_tokens_are_kept_as_torch_would_whoever_comes_with_them(rank: int, latent: int, index: int) -> None:
    num_tokens, rotary = 7, 8
    down_TA = torch.randn(num_tokens, rank + latent + rotary + index + 4)
    norms, turns, slots_T = (
        norms_of(rank, latent, index),
        turns_of(num_tokens, rotary),
        torch.randperm(20)[:7],
    )

    def kept(tokens: slice, keep: object = keep_tokens) -> tuple[Tensor, Tensor, Tensor | None]:
        own = Turns(cos_T1R=turns.cos_T1R[tokens], sin_T1R=turns.sin_T1R[tokens])
        latent_SC, index_SI = torch.zeros(20, latent + rotary), torch.zeros(20, index)
        assert callable(keep)
        query = keep(down_TA[tokens], norms, own, slots_T[tokens].contiguous(), latent_SC, index_SI)
        return latent_SC[slots_T[tokens]], index_SI[slots_T[tokens]], query

    together = kept(slice(None))
    for ours, theirs in zip(together, kept(slice(None), keep_tokens_reference), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # sums in another order
    for token in range(num_tokens):
        for ours, alone in zip(together, kept(slice(token, token + 1)), strict=True):
            assert (ours is None) == (alone is None)
            assert ours is None or alone is None or torch.equal(ours[token : token + 1], alone)


def test_heads_turn_as_torch_would_also_in_place_and_apart() -> None:
    wide, turns = torch.randn(5, 3, 20), turns_of(5, 8)
    expected = rotate(wide[..., 12:], turns.cos_T1R, turns.sin_T1R)
    out = torch.zeros(5, 3, 10)
    turn_heads(wide[..., 12:], turns, out[..., 1:9])
    torch.testing.assert_close(out[..., 1:9], expected, rtol=1e-6, atol=1e-6)
    turn_heads(wide[..., 12:], turns, wide[..., 12:])
    assert torch.equal(wide[..., 12:], out[..., 1:9])
    assert not out[..., :1].any() and not out[..., 9:].any()
