"""From token ids to the first layer: where a walk of the model, or of its MTP layer, starts.

Knows nothing of the layers, and of how many rows are many.

Letters: R rows  D hidden
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.bf16_gemm import bf16_matmul, bf16_matmul_many
from kernels.fp8_rows import empty_rows
from kernels.residual_norm import residual_norm
from model.config import ModelConfig
from model.fp8_walk import NARROW_SPLITS, Delta
from model.fp8_weights import Fp8Layer, Fp8Model

Join = Callable[[Tensor, Tensor], Tensor]  # x_RE, weight_DE -> fp32 [S, R, D], to be added in order


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """hidden_RD: the residual, to which `delta` is still to be added. first_plane: of the cache."""

    hidden_RD: Tensor
    delta: Delta
    layers: Sequence[Fp8Layer]
    last_norm_D: Tensor
    first_plane: int


def start_of_model(model: Fp8Model, ids_R: Tensor) -> Start:
    return Start(
        hidden_RD=model.embedding_VD.index_select(0, ids_R),
        delta=None,
        layers=model.layers,
        last_norm_D=model.last_norm_D,
        first_plane=0,
    )


def start_of_mtp(config: ModelConfig, model: Fp8Model, ids_R: Tensor, given_RD: Tensor, join: Join) -> Start:
    """ids_R: the tokens that follow. given_RD: what the model (or this layer) returned before them."""
    mtp = model.mtp
    assert mtp is not None, "a model without an MTP layer drafts nothing"
    embedded_RD = model.embedding_VD.index_select(0, ids_R)
    normed = [
        _normed(embedded_RD, mtp.embedding_norm_D, config.rms_norm_eps),
        _normed(given_RD, mtp.hidden_norm_D, config.rms_norm_eps),
    ]
    return Start(
        hidden_RD=torch.zeros_like(embedded_RD),
        delta=join(torch.cat(normed, -1), mtp.join_DE),
        layers=[mtp.layer],
        last_norm_D=mtp.norm_D,
        first_plane=config.num_layers,
    )


def join_few(x_RE: Tensor, weight_DE: Tensor) -> Tensor:
    parts_SRD = x_RE.new_empty(NARROW_SPLITS, len(x_RE), len(weight_DE), dtype=torch.float32)
    bf16_matmul(x_RE, weight_DE, parts_SRD)
    return parts_SRD


def join_many(x_RE: Tensor, weight_DE: Tensor) -> Tensor:
    """The same bits, added already."""
    sum_RD = x_RE.new_empty(len(x_RE), len(weight_DE), dtype=torch.float32)
    bf16_matmul_many(x_RE, weight_DE, sum_RD, splits=NARROW_SPLITS)
    return sum_RD[None]


def _normed(x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    out_RD, unused = torch.empty_like(x_RD), empty_rows(len(x_RD), x_RD.shape[1], x_RD.device)
    residual_norm(x_RD, None, weight_D, eps, out_RD, unused)
    return out_RD
