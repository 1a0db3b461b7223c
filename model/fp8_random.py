"""Models of true width made of noise, on the GPU, without a file.

To measure a model one needs its shapes, not its wisdom: values that keep their size from layer to layer,
routing that spreads, logits that differ. Knows nothing of kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.fp8_rows import GROUP, Fp8Weight
from kernels.latent_shape import LatentNorms
from model.config import ModelConfig
from model.fp8_weights import (
    Fp8Attention,
    Fp8Dense,
    Fp8Layer,
    Fp8Model,
    Fp8Moe,
    Fp8Mtp,
    latent_shape,
)

INDEX_NORM_EPS = 1e-6
NOISE_STD = 13.5  # of the E4M3 bytes below, measured
HEAD_GAIN = 2.0  # spreads the logits to std 2, so that the best token has about 1 part in 6


def random_model(config: ModelConfig, device: torch.device, seed: int = 0) -> Fp8Model:
    """All of `config` on `device`, its MTP layer where it has one."""
    make = RandomLayers(config, device, seed)
    hidden, vocab = config.hidden_size, config.vocab_size
    return Fp8Model(
        layers=[make.layer(index) for index in range(config.num_layers)],
        embedding_VD=make.wide(vocab, hidden, std=1.0),
        last_norm_D=torch.ones(hidden, device=device),
        head_VD=make.wide(vocab, hidden, std=HEAD_GAIN * hidden**-0.5),
        mtp=make.mtp() if config.num_mtp_layers else None,
    )


class RandomLayers:
    """Makes layers one after the other from one seed."""

    def __init__(self, config: ModelConfig, device: torch.device, seed: int = 0) -> None:
        self._config, self._device = config, device
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def layer(self, index: int) -> Fp8Layer:
        config = self._config
        hidden = config.hidden_size
        ffn: Fp8Dense | Fp8Moe
        if config.is_dense(index):
            ffn = Fp8Dense(
                gate_up=self._weight(2 * config.intermediate_size, hidden),
                down=self._weight(hidden, config.intermediate_size),
            )
        else:
            experts, width = config.num_experts, config.moe_intermediate_size
            ffn = Fp8Moe(
                gate_ED=self.wide(experts, hidden, std=hidden**-0.5),
                bias_E=torch.zeros(experts, device=self._device),
                gate_up=self._weight(experts + 1, 2 * width, hidden),
                down=self._weight(experts + 1, hidden, width),
            )
        return Fp8Layer(
            attention_norm_D=torch.ones(hidden, device=self._device),
            attention=self._attention(),
            ffn_norm_D=torch.ones(hidden, device=self._device),
            ffn=ffn,
        )

    def mtp(self) -> Fp8Mtp:
        hidden = self._config.hidden_size
        ones_D = torch.ones(hidden, device=self._device)
        return Fp8Mtp(
            layer=self.layer(self._config.num_layers),
            embedding_norm_D=ones_D,
            hidden_norm_D=ones_D,
            join_DE=self.wide(hidden, 2 * hidden, std=(2 * hidden) ** -0.5),
            norm_D=ones_D,
        )

    def wide(self, *shape: int, std: float) -> Tensor:
        """A matrix that is released in bf16."""
        matrix = torch.empty(shape, dtype=torch.bfloat16, device=self._device)
        return matrix.normal_(0.0, std, generator=self._generator)

    def _attention(self) -> Fp8Attention:
        config = self._config
        shape = latent_shape(config)
        assert config.indexer is not None, "latent_shape refuses a model without one"
        heads, hidden = config.num_heads, config.hidden_size
        ones = torch.ones(max(shape.query, shape.latent), device=self._device)
        return Fp8Attention(
            down=self._weight(shape.index_at + shape.index, hidden),
            head_weights_HD=self.wide(config.indexer.num_heads, hidden, std=hidden**-0.5),
            norms=LatentNorms(
                query_Q=ones[: shape.query],
                latent_C=ones[: shape.latent],
                index_weight_I=ones[: shape.index],
                index_bias_I=torch.zeros(shape.index, device=self._device),
                eps=config.rms_norm_eps,
                index_eps=INDEX_NORM_EPS,
            ),
            up=self._weight(heads * config.qk_head_dim + config.indexer.num_heads * shape.index, shape.query),
            kv_b=self._weight(heads * (config.qk_nope_head_dim + config.v_head_dim), shape.latent),
            out=self._weight(hidden, heads * config.v_head_dim),
        )

    def _weight(self, *shape: int) -> Fp8Weight:
        """E4M3 of magnitudes 2 to 30, so that no byte is NaN; products keep the size of a row."""
        values = torch.empty(shape, dtype=torch.uint8, device=self._device)
        for part in values.view(-1, *shape[-2:]):
            part.random_(0, 256, generator=self._generator)
            part.bitwise_and_(0xDF).bitwise_or_(0x40)  # exponents 8 .. 11 of 15
        scale = torch.rand(
            *shape[:-2],
            shape[-2] // GROUP,
            shape[-1] // GROUP,
            device=self._device,
            generator=self._generator,
        )
        return Fp8Weight(values.view(torch.float8_e4m3fn), (scale + 0.5) / (NOISE_STD * shape[-1] ** 0.5))
