"""Tensors made of noise, each from its name and a seed.

Values keep their size from layer to layer, routing spreads, logits differ: to measure or try a model one
needs its shapes, not its wisdom. The same on every CPU, and on every GPU of a kind. Knows nothing of layouts.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

NOISE_STD = 13.5  # of the E4M3 bytes below, measured
HEAD_GAIN = 2.0  # spreads the logits to std 2, so that the best token has about 1 part in 6
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def seed_of(seed: int, name: str) -> int:
    """63 bits of their own for each tensor."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def std_of(name: str, columns: int) -> float:
    """Of a matrix, such that a product keeps the size of a row."""
    std = 1.0 / math.sqrt(columns)
    return {EMBEDDING: 1.0, HEAD: HEAD_GAIN * std}.get(name, std)


class Noise:
    """What stands in for trained tensors. For one thread."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._device, self._seed = device, seed
        self._generator = torch.Generator(device=device)

    def fill(self, name: str, values: Tensor) -> None:
        """A tensor that is not quantised."""
        if name.endswith("bias"):
            values.zero_()
        elif values.dim() == 1:
            values.fill_(1.0)
        else:  # uniform: an integer and one multiplication, several times quicker than a normal
            values.copy_(self._words(name, 2 * values.numel()).view(torch.int16).view(values.shape))
            values.mul_(std_of(name, values.shape[1]) * 3**0.5 / 32768)

    def fill_fp8(self, name: str, values_NK: Tensor) -> None:
        """E4M3 of magnitudes 2 to 30, so that no byte is NaN."""
        bytes_NK = self._words(name, values_NK.numel()).view(values_NK.shape)
        bytes_NK.bitwise_and_(0xDF).bitwise_or_(0x40)  # exponents 8 .. 11 of 15
        values_NK.view(torch.uint8).copy_(bytes_NK)

    def fill_scale(self, name: str, scale: Tensor, columns: int) -> None:
        """Of such a matrix with so many columns."""
        scale.uniform_(0.5, 1.5, generator=self._begin(name + "_scale_inv"))
        scale.div_(NOISE_STD * columns**0.5)

    def _words(self, name: str, num_bytes: int) -> Tensor:
        """uint8, drawn eight at a time: byte by byte it takes ten times as long."""
        words = torch.empty(-(-num_bytes // 8), dtype=torch.int64, device=self._device)
        words.random_(-(1 << 63), None, generator=self._begin(name))
        return words.view(torch.uint8)[:num_bytes]

    def _begin(self, name: str) -> torch.Generator:
        return self._generator.manual_seed(seed_of(self._seed, name))
