"""A whole model in FP8 made of noise: every weight is what the kernels want, nothing is NaN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace

import torch
from torch import Tensor

from kernels.fp8_rows import Fp8Weight
from model.config import ModelConfig
from model.fp8_random import random_model
from model.fp8_weights import Fp8Dense, Fp8Moe
from model.true_width import true_width

CPU = torch.device("cpu")


def narrow(*, mtp: bool) -> ModelConfig:
    """What the kernels fix is as released, the rest small."""
    config = true_width(moe_layers=1, num_experts=64, mtp=mtp)
    return replace(
        config,
        vocab_size=300,
        hidden_size=256,
        intermediate_size=384,
        moe_intermediate_size=128,
        num_experts=16,
        num_heads=2,
        q_lora_rank=256,
    )


def parts(value: object) -> Iterator[Tensor | Fp8Weight]:
    """Every tensor and every FP8 weight under `value`."""
    if isinstance(value, Tensor | Fp8Weight):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from parts(one)
    elif is_dataclass(value):
        for field in fields(value):
            yield from parts(getattr(value, field.name))


def test_noise_fills_a_model_with_what_kernels_take() -> None:
    config = narrow(mtp=True)
    model = random_model(config, CPU)
    assert [type(layer.ffn) for layer in model.layers] == [Fp8Dense, Fp8Moe]
    assert model.mtp is not None and isinstance(model.mtp.layer.ffn, Fp8Moe)
    assert model.embedding_VD.shape == model.head_VD.shape == (300, 256)
    for part in parts(model):
        if isinstance(part, Fp8Weight):
            part.check("weight")
            assert torch.isfinite(part.values_NK.float()).all()
            part = part.scale_NK
        assert torch.isfinite(part.float()).all()


def test_seed_decides_and_only_a_config_with_mtp_drafts() -> None:
    config = narrow(mtp=False)
    first, again, other = (random_model(config, CPU, seed) for seed in (1, 1, 2))
    assert first.mtp is None
    assert torch.equal(first.head_VD, again.head_VD)
    assert not torch.equal(first.head_VD, other.head_VD)
