"""The FP8 cache of one GPU: latents, rotary keys and index keys of every layer, by pages.

656 bytes of latent (512 E4M3, four fp32 scales, 64 fp16 rotary) and 132 of index key a token and layer.
Slots mean what they mean in model/cache.py. Knows nothing of who owns a page.
"""

from __future__ import annotations

import torch

from kernels.fp8_rows import GROUP
from kernels.index_logits import IndexCache
from kernels.sparse_mla import QuantizedCache
from model.cache import PAGE_TOKENS
from model.config import ModelConfig


class Fp8Cache:
    """Allocated once; what was never written is zero. The MTP layer's planes are the last.

    Nothing is ever cleared: a row reads the slots that it is told to, all written by its own sequence or one
    that began alike, and page 0, which nobody owns, where it is told none.
    """

    def __init__(self, config: ModelConfig, num_pages: int, device: torch.device) -> None:
        slots = num_pages * PAGE_TOKENS
        index = config.indexer.head_dim if config.indexer else 0
        latent, rotary = config.kv_lora_rank, config.qk_rope_head_dim

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        layers = range(config.num_layers + config.num_mtp_layers)
        self.num_pages = num_pages
        self.latents = [
            QuantizedCache(
                latent_SC=zeros(slots, latent, dtype=torch.float8_e4m3fn),
                scale_SG=zeros(slots, latent // GROUP, dtype=torch.float32),
                rotary_SR=zeros(slots, rotary, dtype=torch.float16),
            )
            for _ in layers
        ]
        self.keys = [
            IndexCache(
                key_SI=zeros(slots, index, dtype=torch.float8_e4m3fn),
                scale_S=zeros(slots, dtype=torch.float32),
            )
            for _ in layers
        ]

    @property
    def planes(self) -> list[torch.Tensor]:
        """Of all layers, a row a slot."""
        return [
            plane
            for latent, key in zip(self.latents, self.keys, strict=True)
            for plane in (latent.latent_SC, latent.scale_SG, latent.rotary_SR, key.key_SI, key.scale_S)
        ]

    @property
    def bytes_per_token(self) -> int:
        """Of one token over all layers."""
        return sum(plane[0].numel() * plane.itemsize for plane in self.planes)

    def clear_null_page(self) -> None:
        """Zero the page that nobody owns."""
        for plane in self.planes:
            plane[:PAGE_TOKENS].zero_()
