"""The pages that hold what attention remembers.

One latent (C + R values) and one index key per token and layer, in pages of PAGE_TOKENS slots; a slot number
is page * PAGE_TOKENS + offset and means the same place in every layer. Knows nothing of sequences: who owns a
page is the business of actors/pages.py.

Letters: S slots of the pool  C latent  R rotary dims  I index dims  T tokens of the step
         X values of a slot  P pages of a sequence  B sequences
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import ModelConfig

PAGE_TOKENS = 64


class LatentCache:
    """Latents and index keys of every layer, the MTP layer last; allocated once and zero-filled."""

    def __init__(self, config: ModelConfig, num_pages: int, dtype: torch.dtype) -> None:
        slots = num_pages * PAGE_TOKENS
        self.num_pages = num_pages
        num_layers = config.num_layers + config.num_mtp_layers
        self.latent_SC = [torch.zeros(slots, config.latent_dim, dtype=dtype) for _ in range(num_layers)]
        index_dim = config.indexer.head_dim if config.indexer else 0
        self.index_SI = [torch.zeros(slots, index_dim, dtype=dtype) for _ in range(num_layers)]

    @property
    def bytes_per_token(self) -> int:
        """Of one token over all layers; model/memory.py has the formula."""
        return sum(slots.shape[1] * slots.itemsize for slots in (*self.latent_SC, *self.index_SI))

    def clear(self, pages: list[int]) -> None:
        """Zero pages before use: a NaN of their last owner would pass through the mask of unused slots."""
        if not pages:
            return
        index = torch.tensor(pages)
        for slots in (*self.latent_SC, *self.index_SI):
            slots.view(self.num_pages, PAGE_TOKENS, slots.shape[1]).index_fill_(0, index, 0.0)

    @property
    def page_bytes(self) -> int:
        """Of what `read` tells of one page."""
        return self.bytes_per_token * PAGE_TOKENS

    def read(self, pages: Sequence[int]) -> bytes:
        """What they hold, one after another: of each the latents, then the index keys of every layer."""
        index = torch.tensor(pages)
        parts = [self._by_page(slots).index_select(0, index) for slots in self._planes]
        return torch.cat([part.view(torch.uint8) for part in parts], dim=1).numpy().tobytes()

    def fill(self, pages: Sequence[int], held: memoryview) -> None:
        """The inverse of read; held must be writable memory, as torch wants it, and is not written."""
        index, at = torch.tensor(pages), 0
        bytes_PX = torch.frombuffer(held, dtype=torch.uint8).view(len(pages), -1)
        for slots in self._planes:
            own = self._by_page(slots)
            width = own.shape[1] * own.itemsize
            own.index_copy_(0, index, bytes_PX[:, at : at + width].clone().view(own.dtype))
            at += width

    @property
    def _planes(self) -> list[Tensor]:
        """Everything that is kept of a token."""
        return [slots for slots in (*self.latent_SC, *self.index_SI) if slots.shape[1]]

    def _by_page(self, slots_SX: Tensor) -> Tensor:
        return slots_SX.view(self.num_pages, PAGE_TOKENS * slots_SX.shape[1])


def pages_of(slots_SX: Tensor, pages_BP: Tensor) -> Tensor:
    """What these pages hold, [B, P * PAGE_TOKENS, X]: a copy, quicker by whole pages than by slots."""
    width = slots_SX.shape[1]
    held_PX = slots_SX.view(-1, PAGE_TOKENS * width).index_select(0, pages_BP.reshape(-1))
    return held_PX.view(len(pages_BP), -1, width)
