"""The Triton form of tile rounding is the torch form, bit for bit."""

from __future__ import annotations

import pytest
import torch

from kernels.fp8 import Tile, round_tiles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TILES = (Tile(1, 128), Tile(128, 1), Tile(128, 128))
SHAPES = ((4096, 256), (16384, 48), (1000, 112), (130, 200), (32, 48, 256), (32, 256, 48))


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.columns}")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_on_the_device_gives_the_bits_of_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, tile: Tile
) -> None:
    from kernels.fp8_round import round_tiles_cuda

    generator = torch.Generator(device="cuda").manual_seed(0)
    spread = torch.randn(shape[-2], 1, device="cuda", generator=generator).mul(3).exp()
    x = (torch.randn(shape, device="cuda", generator=generator) * spread).to(dtype)
    assert torch.equal(round_tiles_cuda(x, tile), round_tiles(x, tile))
