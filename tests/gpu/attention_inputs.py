"""Fresh random inputs of the attention kernels, shared by their tests and by nothing else.

Knows nothing of what the kernels should give.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.index_logits import IndexCache
from kernels.sparse_mla import QuantizedCache

NAN = float("nan")


def latent_cache(num_slots: int, device: str = "cpu") -> QuantizedCache:
    """Unit-normal latents, quantised with scales 2^-9 to 2^-6."""
    exponent_SG = torch.randint(-9, -5, (num_slots, 4), device=device)
    latent_SC = torch.randn(num_slots, 512, device=device) * 64
    return QuantizedCache(
        latent_SC=latent_SC.clamp(-448, 448).to(torch.float8_e4m3fn),
        scale_SG=torch.exp2(exponent_SG.float()),
        rotary_SR=torch.randn(num_slots, 64, device=device).half(),
    )


def queries(num_queries: int, heads: int = 64, device: str = "cpu") -> Tensor:
    return (torch.randn(num_queries, heads, 576, device=device)).half()


def chosen_slots(counts: list[int], width: int, num_slots: int, device: str = "cpu") -> Tensor:
    """Distinct slots of each query, as many as it has, then -1."""
    slots_TJ = torch.full((len(counts), width), -1, dtype=torch.int32)
    for slots_J, count in zip(slots_TJ, counts, strict=True):
        slots_J[:count] = torch.randperm(num_slots)[:count].int()
    return slots_TJ.to(device)


def index_cache(num_slots: int, device: str = "cpu") -> IndexCache:
    return IndexCache(
        key_SI=torch.randn(num_slots, 128, device=device).to(torch.float8_e4m3fn),
        scale_S=torch.rand(num_slots, device=device) + 0.5,
    )


def index_queries(num_queries: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """E4M3 queries and their heads' weights, of both signs."""
    query_THI = torch.randn(num_queries, 64, 128, device=device).to(torch.float8_e4m3fn)
    return query_THI, torch.randn(num_queries, 64, device=device) / 64


def page_tables(num_queries: int, max_pages: int, num_pages: int, device: str = "cpu") -> Tensor:
    return torch.stack([torch.randperm(num_pages)[:max_pages].int() for _ in range(num_queries)]).to(device)
