"""Experts are pure functions of a row, in any company."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kernels import few_mlps
from kernels.compiled import IS_COMPILED
from kernels.int8 import quantize_weight
from kernels.rows import ROW_MULTIPLE, dtype_of_rows
from model.config import ModelConfig
from model.experts import ExpertShard, Mlp, swiglu

NUM_SLOTS = 6
DTYPES = (torch.float32, torch.bfloat16, torch.int8)  # of the weights


@pytest.fixture(scope="module")
def config(tiny_v32: Path) -> ModelConfig:
    return ModelConfig.from_file(tiny_v32 / "config.json")


def random_mlp(config: ModelConfig, seed: int, dtype: torch.dtype) -> Mlp:
    generator = torch.Generator().manual_seed(seed)
    hidden, width = config.hidden_size, config.moe_intermediate_size
    gate_up_DF = torch.randn(hidden, 2 * width, generator=generator) / hidden**0.5
    down_FD = torch.randn(width, hidden, generator=generator) / width**0.5
    if dtype == torch.int8:
        return Mlp(gate_up_DF=quantize_weight(gate_up_DF.t()), down_FD=quantize_weight(down_FD.t()))
    return Mlp(gate_up_DF=gate_up_DF.to(dtype), down_FD=down_FD.to(dtype))


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def shard(dtype: torch.dtype, config: ModelConfig) -> ExpertShard:
    shard = ExpertShard(config, NUM_SLOTS, dtype_of_rows(dtype))
    for layer in range(config.num_dense_layers, config.num_layers):
        for slot in range(NUM_SLOTS):
            shard.fill(layer, slot, random_mlp(config, 100 * layer + slot, dtype))
    return shard


def rows(config: ModelConfig, count: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, config.hidden_size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 120), st.integers(0, 2**31))
def test_a_shard_gives_each_pair_the_bits_it_has_alone(config, shard, num_rows, num_pairs, seed):
    random = np.random.default_rng(seed)
    row_P = random.integers(0, num_rows, num_pairs).astype(np.int32)
    slot_P = random.integers(0, NUM_SLOTS, num_pairs).astype(np.int32)
    x_RD, layer = rows(config, num_rows, shard.dtype, seed), config.num_layers - 1
    out = shard.forward(layer, x_RD, row_P, slot_P)
    assert out.dtype == shard.dtype
    assert torch.equal(out, shard.forward_reference(layer, x_RD, row_P, slot_P))


def test_more_rows_for_one_slot_than_a_tile_holds(config: ModelConfig, shard: ExpertShard):
    x_RD = rows(config, 300, shard.dtype)
    row_P = np.arange(300, dtype=np.int32)
    slot_P = np.where(row_P % 50 == 0, 5, 2).astype(np.int32)
    layer = config.num_dense_layers
    out = shard.forward(layer, x_RD, row_P, slot_P)
    assert torch.equal(out, shard.forward_reference(layer, x_RD, row_P, slot_P))


def test_layers_and_slots_hold_their_own_weights(config: ModelConfig, shard: ExpertShard, dtype: torch.dtype):
    x_RD = rows(config, 4, shard.dtype)
    for layer in range(config.num_dense_layers, config.num_layers):
        for slot in range(NUM_SLOTS):
            expected = random_mlp(config, 100 * layer + slot, dtype).forward(x_RD)
            slot_P = np.full(4, slot, dtype=np.int32)
            assert torch.equal(shard.forward(layer, x_RD, np.arange(4, dtype=np.int32), slot_P), expected)


def test_weights_that_are_replaced_stay_in_memory_while_they_are_computed_with(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
):
    """Compiled code has their address alone, and lets other threads run."""
    if not IS_COMPILED:
        pytest.skip("no numba: nothing goes by address")
    layer, seen = config.num_dense_layers, list[bool]()
    shard = ExpertShard(config, NUM_SLOTS, torch.float32)
    shard.fill(layer, 0, random_mlp(config, 1, torch.float32))
    weights = weakref.ref(shard.expert(layer, 0).down_FD)
    multiply = few_mlps.experts

    def replaced_meanwhile(*arguments: Any) -> torch.Tensor:
        shard.fill(layer, 0, random_mlp(config, 2, torch.float32))
        seen.append(weights() is not None)
        return multiply(*arguments)

    monkeypatch.setattr(few_mlps, "experts", replaced_meanwhile)
    rows_RD = torch.randn(3, config.hidden_size)
    shard.forward(layer, rows_RD, np.arange(3, dtype=np.int32), np.zeros(3, dtype=np.int32))
    assert seen == [True]
    assert weights() is None, "and no longer"


def test_a_slot_says_zero_until_it_is_filled(config: ModelConfig):
    shard = ExpertShard(config, 2, torch.float32)
    layer, row_P = config.num_dense_layers, np.zeros(1, dtype=np.int32)
    shard.fill(layer, 1, random_mlp(config, 1, torch.float32))
    x_RD = rows(config, 1, torch.float32)
    assert shard.forward(layer, x_RD, row_P, np.ones(1, dtype=np.int32)).abs().sum() > 0
    assert shard.forward(layer, x_RD, row_P, np.zeros(1, dtype=np.int32)).abs().sum() == 0


def test_an_mlp_is_down_of_silu_gate_times_up(config: ModelConfig):
    mlp, x_RD = random_mlp(config, 3, torch.float32), rows(config, 8, torch.float32)
    gate, up = (part.double() for part in mlp.gate_up_DF.chunk(2, dim=-1))
    x = x_RD.double()
    expected = (functional.silu(x @ gate) * (x @ up)) @ mlp.down_FD.double()
    torch.testing.assert_close(mlp.forward(x_RD).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [32, 64, 80, 176, 2048])
def test_the_activation_of_a_row_has_the_same_bits_in_any_company(width: int, rows_dtype: torch.dtype):
    gate_up = (torch.randn(200, 2 * width, generator=torch.Generator().manual_seed(width)) * 3).to(rows_dtype)
    whole = swiglu(gate_up)
    for count in (ROW_MULTIPLE, 3 * ROW_MULTIPLE, 100):
        for start in (0, 7, 100):
            assert torch.equal(swiglu(gate_up[start : start + count].clone()), whole[start : start + count])


def test_the_activation_rounds_once():
    gate_up = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    gate, up = gate_up.float().chunk(2, dim=-1)
    assert torch.equal(swiglu(gate_up), (functional.silu(gate) * up).bfloat16())
