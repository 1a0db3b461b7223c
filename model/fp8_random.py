"""Models of true width made of noise, on the GPU, without a file.

Knows nothing of kernels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from model.config import ModelConfig
from model.fp8_places import Place, Room
from model.fp8_weights import Fp8Layer, Fp8Model
from model.noise import Noise


def random_model(config: ModelConfig, device: torch.device, seed: int = 0) -> Fp8Model:
    """All of `config` on `device`, its MTP layer where it has one."""
    room = Room(config, device)
    model = room.model()
    _fill(room.places, Noise(device, seed))
    return model


class RandomLayers:
    """Makes the layers of a model one by one; the same seed makes the same."""

    def __init__(self, config: ModelConfig, device: torch.device, seed: int = 0) -> None:
        self._config, self._device = config, device
        self._noise = Noise(device, seed)

    def layer(self, index: int) -> Fp8Layer:
        room = Room(self._config, self._device)
        layer = room.layer(index)
        _fill(room.places, self._noise)
        return layer


def _fill(places: Iterable[Place], noise: Noise) -> None:
    for place in places:
        if place.scale is None:
            noise.fill(place.name, place.values)
        else:
            noise.fill_fp8(place.name, place.values)
            noise.fill_scale(place.name, place.scale, place.values.shape[1])
