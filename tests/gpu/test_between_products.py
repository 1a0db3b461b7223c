"""What stands between the products of a layer does what its reference does."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from kernels.absorb import absorb_query, absorb_query_reference, absorb_value, absorb_value_reference
from kernels.absorb_many import absorb_query_many
from kernels.fp8_rows import Fp8Rows, empty_rows, quantize_rows
from kernels.gate_topk import GateShape, gate_topk, gate_topk_reference
from kernels.index_logits import IndexCache
from kernels.index_query import index_query, index_query_reference
from kernels.latent_shape import LatentNorms, LatentShape
from kernels.latent_write import (
    hadamard,
    latent_write,
    latent_write_reference,
)
from kernels.residual_norm import Weighted, residual_norm, residual_norm_reference
from kernels.routes import empty_routes, routes_of
from kernels.sort_tiles import sort_tiles
from kernels.sparse_mla import QuantizedCache
from tests.gpu.fp8_inputs import random_weight, relative_error

NAN = float("nan")
EPS = 1e-6
TILE_ROWS = 2


@pytest.mark.parametrize("mode", ["nothing", "parts", "experts", "lanes"])
def test_residual_and_norm(device: torch.device, mode: str) -> None:
    rows, width = 3, 640
    residual = torch.randn(rows, width, device=device).to(torch.bfloat16)
    weight = torch.rand(width, device=device) + 0.5
    delta: torch.Tensor | Weighted | None = None
    if mode == "parts":
        delta = torch.randn(3, rows, width, device=device)
    elif mode == "experts":
        pairs = torch.randn(rows * 3, width, device=device).to(torch.bfloat16)
        delta = Weighted(pairs_PD=pairs, weights_RK=torch.rand(rows, 2, device=device), places=3)
    elif mode == "lanes":  # room for four rows, of which there are three; each place's row where it says
        delta = Weighted(
            pairs_PD=torch.randn(3 * 12, width, device=device).to(torch.bfloat16),
            weights_RK=torch.rand(rows, 2, device=device),
            places=3,
            lanes_RP=torch.tensor([[1, 2, 0], [2, 2, 0], [1, 1, 0]], dtype=torch.int32, device=device),
            lane_pairs=12,
        )
    wanted_residual, wanted = residual_norm_reference(residual, delta, weight, EPS)
    out = torch.full((rows, width), NAN, device=device, dtype=torch.bfloat16)
    quantized = empty_rows(rows, width, device)
    residual_norm(residual, delta, weight, EPS, out, quantized)
    assert relative_error(residual, wanted_residual) < 1e-3
    assert relative_error(out, wanted) < 4e-3
    assert torch.equal(quantized.float(), quantize_rows(out).float())


@pytest.mark.parametrize("shared", [True, False])
def test_gate_chooses_as_the_model_does(device: torch.device, shared: bool) -> None:
    rows, experts = 7, 32
    shape = GateShape(num_experts=experts, per_row=4, num_groups=8, kept_groups=4, scaling=2.5, shared=shared)
    # Few distinct values, so that ties happen; parts whose sums are exact.
    parts = torch.randint(-3, 4, (2, rows, experts), device=device).float() / 4
    bias = torch.randint(-1, 2, (experts,), device=device).float() / 8
    weights = torch.full((rows, 4), NAN, device=device)
    chosen = torch.full((rows, 4), -1, dtype=torch.int32, device=device)
    routes = empty_routes(experts + shared, rows, 4 + shared, TILE_ROWS, device, shared=shared)
    gate_topk(parts, bias, shape, weights, chosen, routes)
    wanted_weights, wanted = gate_topk_reference(parts.sum(0), bias, shape)
    assert torch.equal(chosen.long(), wanted)
    torch.testing.assert_close(weights, wanted_weights, rtol=1e-6, atol=1e-7)
    full = torch.cat([wanted, torch.full((rows, int(shared)), experts, device=device)], 1)
    expected = routes_of(full, experts + shared, TILE_ROWS, shared=shared)
    assert torch.equal(routes.counts, expected.counts)
    for expert in range(experts + shared):
        count = int(routes.counts[expert])
        own = routes.pairs_EC[expert, :count].sort().values
        assert torch.equal(own, expected.pairs_EC[expert, :count]), "its pairs, in whatever order"
    used = int(routes.counts[-1]) + routes.shared_tiles
    assert torch.equal(routes.tiles[:used].sort().values, expected.tiles[:used].sort().values)
    assert torch.equal(routes.tiles[: routes.shared_tiles], expected.tiles[: routes.shared_tiles])
    sort_tiles(routes)
    by_expert = sorted(expected.tiles[routes.shared_tiles : used].tolist(), key=lambda it: (it & 0xFFFF, it))
    assert routes.tiles[routes.shared_tiles : used].tolist() == by_expert


def test_a_row_that_is_no_number_spoils_no_other(
    device: torch.device,
) -> None:
    shape = GateShape(num_experts=32, per_row=4, num_groups=8, kept_groups=4, scaling=2.5, shared=False)
    parts = torch.randn(1, 3, 32, device=device)
    parts[0, 1] = NAN
    bias = torch.zeros(32, device=device)
    weights = torch.full((3, 4), -1.0, device=device)
    chosen = torch.full((3, 4), -1, dtype=torch.int32, device=device)
    routes = empty_routes(32, 3, 4, TILE_ROWS, device, shared=False)
    gate_topk(parts, bias, shape, weights, chosen, routes)
    _, wanted = gate_topk_reference(parts[0, [0, 2]], bias, shape)
    assert torch.equal(chosen[[0, 2]].long(), wanted)
    assert torch.isfinite(weights[[0, 2]]).all()
    assert int(routes.counts[:32].sum()) == 12, "four experts a row, whatever it holds"


def test_latents_and_keys_are_written_where_the_slots_say(device: torch.device) -> None:
    shape = LatentShape(query=256, latent=512, rotary=64, index=128, index_at=896)
    rows, slots, splits, width = 3, 70, 2, 1024
    parts = torch.randn(splits, rows, width, device=device)
    norms = LatentNorms(
        query_Q=torch.rand(256, device=device) + 0.5,
        latent_C=torch.rand(512, device=device) + 0.5,
        index_weight_I=torch.rand(128, device=device) + 0.5,
        index_bias_I=torch.randn(128, device=device),
        eps=EPS,
        index_eps=EPS,
    )
    angles = torch.rand(50, 32, device=device) * 6
    positions = torch.tensor([0, 49, 7], dtype=torch.int32, device=device)
    where = torch.tensor([69, 3, -1], dtype=torch.int32, device=device)
    mixing = hadamard(128, device)
    query = empty_rows(rows, 256, device)
    latents = QuantizedCache(
        latent_SC=torch.zeros(slots, 512, device=device).to(torch.float8_e4m3fn),
        scale_SG=torch.full((slots, 4), NAN, device=device),
        rotary_SR=torch.full((slots, 64), NAN, dtype=torch.float16, device=device),
    )
    keys = IndexCache(
        key_SI=torch.zeros(slots, 128, device=device).to(torch.float8_e4m3fn),
        scale_S=torch.full((slots,), NAN, device=device),
    )
    cos, sin = angles.cos(), angles.sin()
    latent_write(parts, shape, norms, cos, sin, positions, where, mixing, query, latents, keys)
    at = positions.long()
    q, latent, rotary, key = latent_write_reference(parts.sum(0), shape, norms, cos[at], sin[at], mixing)
    fp8 = 0.04  # three bits of mantissa
    assert relative_error(query.float(), q) < fp8
    for row, slot in ((0, 69), (1, 3)):
        stored = Fp8Rows(latents.latent_SC[slot][None], latents.scale_SG[slot][:, None]).float()
        assert relative_error(stored[0], latent[row]) < fp8
        assert relative_error(latents.rotary_SR[slot], rotary[row]) < 1e-3
        own = keys.key_SI[slot].float() * keys.scale_S[slot]
        assert relative_error(own, key[row]) < fp8
    untouched = torch.ones(slots, dtype=torch.bool, device=device)
    untouched[[69, 3]] = False
    assert keys.scale_S[untouched].isnan().all()
    assert latents.rotary_SR[untouched].isnan().all()


def test_index_queries_and_their_weights(device: torch.device) -> None:
    rows, heads, column = 2, 64, 128
    up = torch.randn(rows, column + heads * 128, device=device).to(torch.bfloat16)
    head_parts = torch.randn(2, rows, heads, device=device)
    angles = torch.rand(9, 32, device=device) * 6
    positions = torch.tensor([8, 3], dtype=torch.int32, device=device)
    mixing = hadamard(128, device)
    query = torch.zeros(rows, heads, 128, device=device).to(torch.float8_e4m3fn)
    weights = torch.full((rows, heads), NAN, device=device)
    index_query(up, column, head_parts, angles.cos(), angles.sin(), positions, mixing, query, weights)
    at = positions.long()
    given = up[:, column:].view(rows, heads, 128)
    wanted = index_query_reference(given, angles[at].cos(), angles[at].sin(), mixing)
    constant = (heads * 128) ** -0.5
    scale = weights / (head_parts.sum(0) * constant)
    assert relative_error(query.float() * scale[..., None], wanted) < 0.04
    largest = wanted.abs().amax(-1)
    assert ((largest / scale <= 448 * 1.01) & (largest / scale > 220)).all(), "the smallest scale that fits"


@pytest.mark.parametrize("rows", [2, 66])
def test_absorbed_projections(device: torch.device, rows: int) -> None:
    heads, latent = 2, 256
    kv_b = random_weight((heads * 256, latent), device)
    up = torch.randn(rows, heads * 192 + 32, device=device).to(torch.bfloat16)
    angles = torch.rand(20, 32, device=device) * 6
    positions = torch.randint(20, (rows,), dtype=torch.int32, device=device)
    out = torch.full((rows, heads, latent + 64), NAN, dtype=torch.float16, device=device)
    absorb_query(up, kv_b, angles.cos(), angles.sin(), positions, out)
    query = up[:, : heads * 192].view(rows, heads, 192)
    assert relative_error(out[..., :latent], absorb_query_reference(query[..., :128], kv_b)) < 1e-3
    first, second = query[..., 128:].double().chunk(2, -1)
    cos, sin = (f(angles[positions.long()])[:, None].double() for f in (torch.cos, torch.sin))
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    assert relative_error(out[..., latent:], turned) < 1e-3

    gathered = torch.randn(rows, heads, latent, device=device).to(torch.bfloat16)
    values = empty_rows(rows, heads * 128, device)
    absorb_value(gathered, kv_b, values)
    assert relative_error(values.float(), absorb_value_reference(gathered, kv_b)) < 0.04


def test_absorbing_many_rows_gives_the_bits_of_few(device: torch.device) -> None:
    rows, heads, latent = (300, 128, 512) if device.type == "cuda" else (3, 2, 256)
    kv_b = random_weight((heads * 256, latent), device)
    up = torch.randn(rows, heads * 192 + 32, device=device).to(torch.bfloat16)
    angles = torch.rand(20, 32, device=device) * 6
    positions = torch.randint(20, (rows,), dtype=torch.int32, device=device)
    few = torch.full((rows, heads, latent + 64), NAN, dtype=torch.float16, device=device)
    many = few.clone()
    absorb_query(up, kv_b, angles.cos(), angles.sin(), positions, few)
    absorb_query_many(up, kv_b, angles.cos(), angles.sin(), positions, many)
    assert torch.equal(few, many)
