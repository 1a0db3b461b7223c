"""What cannot be served on a GPU is refused before anything starts, with what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster import doctor
from cluster.gpu_fit import check_gpus, check_model
from cluster.gpus import Gpu, gpus
from cluster.spec import ShoalSpec, SpecError
from model.fields import ConfigError
from model.memory import pages_that_fit
from model.true_width import true_width

H200 = Gpu(name="H200", capability=(9, 0), memory_bytes=150_754_820_096)
A100 = Gpu(name="A100", capability=(8, 0), memory_bytes=85_899_345_920)


def spec_of(**fields: Any) -> ShoalSpec:
    return ShoalSpec.from_sources(None, {"device": "cuda", **fields})


def test_cuda_is_one_attention_actor_with_everything() -> None:
    spec = spec_of(model="random:5")
    assert (spec.dtype, spec.experts, spec.standbys, spec.attention) == ("fp8", 0, 0, 1)
    assert (spec.chunk_tokens, spec_of(chunk_tokens=64).chunk_tokens) == (512, 64)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dtype": "int8"}, "dtype is int8: with device cuda it is fp8"),
        ({"experts": 2}, "experts is 2: with device cuda it is 0"),
        ({"standbys": 1}, "standbys is 1: with device cuda it is 0"),
        ({"device": "cpu", "dtype": "fp8"}, "needs --device cuda"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"model": "random:5", "address": "h:6379", "api_keys": "k"}, "other nodes know no such name"),
    ],
)
def test_a_spec_that_does_not_fit_its_device_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        spec_of(**fields)


@pytest.mark.parametrize(
    ("found", "actors", "triton", "words"),
    [
        ([], 1, True, "no GPU is seen"),
        ([H200, A100], 1, True, "A100 is sm_80.*written for sm_90.*CUDA_VISIBLE_DEVICES"),
        ([H200], 2, True, "attention is 2.*1 are seen"),
        ([H200], 1, False, "triton is not installed"),
    ],
)
def test_gpus_that_cannot_serve_are_refused(found: list[Gpu], actors: int, triton: bool, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        check_gpus(found, actors, triton=triton)


def test_a_cache_that_nobody_sized_is_what_the_gpu_has_room_for() -> None:
    assert spec_of().told_cache_tokens is None
    assert spec_of(cache_tokens=128).told_cache_tokens == 128
    assert ShoalSpec().told_cache_tokens == ShoalSpec().cache_tokens
    config = true_width(moe_layers=4, mtp=True)
    page_bytes = 64 * 6 * (656 + 132)
    assert pages_that_fit(config, 10 * page_bytes + 1, 64) == 10
    assert pages_that_fit(config, -1, 64) == 0


def test_twelve_moe_layers_fit_one_h200_and_thirteen_do_not() -> None:
    check_gpus([H200], triton=True)
    check_model(spec_of(), true_width(moe_layers=12), [H200])
    with pytest.raises(SpecError, match=r"weights take 15\d\.\d GB.*H200 has 150\.8 GB.*lower cache_tokens"):
        check_model(spec_of(), true_width(moe_layers=13), [H200])
    with pytest.raises(SpecError, match="not enough GPU memory"):
        check_model(spec_of(cache_tokens=10_000_000), true_width(moe_layers=8), [H200])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_lora_rank": 256}, "kv_lora_rank is 256: .* written for 512"),
        ({"q_lora_rank": 1500}, "q_lora_rank is 1500: .* multiples of 128"),
        ({"num_heads": 127}, "num_attention_heads x 192 is 24384"),
        ({"model_type": "deepseek_v3", "indexer": None}, "model_type is deepseek_v3"),
    ],
)
def test_dims_that_are_not_the_kernels_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_model(spec_of(), replace(true_width(moe_layers=1), **changes), [H200])


def test_blocks_of_another_size_are_refused() -> None:
    with pytest.raises(SpecError, match=r"weight_block_size is \(64, 64\)"):
        check_model(spec_of(), replace(true_width(moe_layers=1), fp8_block=(64, 64)), [H200])


def test_the_doctor_says_whether_a_gpu_could_serve() -> None:
    assert doctor.gpu([]).state == "good" and "CPU" in doctor.gpu([]).text
    able = doctor.gpu([H200], has_triton=True)
    assert (able.state, able.text) == ("good", "H200 (151 GB): --device cuda can serve")
    unable = doctor.gpu([A100], has_triton=True)
    assert unable.state == "poor" and "sm_80" in unable.text and "CUDA_VISIBLE_DEVICES" in unable.remedy


def test_asking_the_driver_is_safe_where_there_is_none() -> None:
    assert all(gpu.memory_bytes > 1 << 30 and gpu.capability >= (3, 0) for gpu in gpus())
