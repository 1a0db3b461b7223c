"""What the down projection makes, and the norms that it passes.

Plain numbers and tensors, for loaders where there is no compiler. Knows nothing of kernels.

Letters: Q query latent  C latent  I index dims
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentShape:
    """Widths of what the down projection makes; index_at: the column where the indexer's key begins."""

    query: int
    latent: int
    rotary: int
    index: int
    index_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentNorms:
    """fp32 weights of the three norms; LayerNorm for the index key."""

    query_Q: Tensor
    latent_C: Tensor
    index_weight_I: Tensor
    index_bias_I: Tensor
    eps: float
    index_eps: float
