"""Everything of the model but the routed experts.

What an attention actor holds: embedding, attention of every layer, dense layers, gates, shared experts, head.
The walk through the layers is actors/step.py; this file gives it the pieces. Knows nothing of routed experts.

Letters: T rows  D hidden  V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.latent_rows import Turns
from kernels.norm import rms_norm
from kernels.rows import Weight, matmul_rows, row_multiple
from model.batch import Batch
from model.config import ModelConfig
from model.experts import Mlp
from model.gate import Gate
from model.mla import Mla
from model.rope import rope_tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One block. A dense layer has `mlp`; a MoE layer has `gate` and `shared`."""

    index: int
    attention_norm_D: Tensor
    mla: Mla
    ffn_norm_D: Tensor
    mlp: Mlp | None
    gate: Gate | None
    shared: Mlp | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadWeights:
    """embedding_VD and head_DV in the model's dtype, norm_D in fp32."""

    embedding_VD: Tensor
    norm_D: Tensor
    head_DV: Weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Mtp:
    """The MTP layer: from the hidden of position i and the token i + 1 to a hidden that predicts token i + 2.

    join_ED: from [embedding | hidden] to D. norm_D stands before the main model's head.
    """

    layer: Layer
    embedding_norm_D: Tensor
    hidden_norm_D: Tensor
    join_ED: Weight
    norm_D: Tensor


class Decoder:
    """The layers in order, and the two ends; mtp: None when nothing is drafted."""

    def __init__(
        self,
        config: ModelConfig,
        layers: list[Layer],
        head: HeadWeights,
        context_tokens: int,
        mtp: Mtp | None = None,
    ) -> None:
        self.config = config
        self.layers = layers
        self.mtp = mtp
        self.dtype = head.embedding_VD.dtype
        self.index_topk = config.indexer.topk if config.indexer else None
        self.row_multiple = row_multiple(self.dtype, head.embedding_VD.device)
        self._head = head
        self._cos, self._sin = rope_tables(config.rope, config.qk_rope_head_dim, context_tokens)

    def embed(self, batch: Batch) -> Tensor:
        """[T, D]"""
        return self._head.embedding_VD.index_select(0, batch.token_ids_T)

    def join(self, mtp: Mtp, batch: Batch, hidden_TD: Tensor) -> Tensor:
        """[T, D], what the MTP layer starts from; the batch's tokens are those that follow hidden_TD's."""
        embedded = self.norm(self.embed(batch), mtp.embedding_norm_D)
        return matmul_rows(torch.cat([embedded, self.norm(hidden_TD, mtp.hidden_norm_D)], -1), mtp.join_ED)

    def turns(self, batch: Batch) -> Turns:
        """The angles of the step's positions."""
        return Turns(
            cos_T1R=self._cos.index_select(0, batch.positions_T)[:, None],
            sin_T1R=self._sin.index_select(0, batch.positions_T)[:, None],
        )

    def norm(self, x_TD: Tensor, weight_D: Tensor) -> Tensor:
        return rms_norm(x_TD, weight_D, self.config.rms_norm_eps)

    def last_norm(self, x_TD: Tensor) -> Tensor:
        return self.norm(x_TD, self._head.norm_D)

    def logits(self, hidden_TD: Tensor, rows: Tensor) -> Tensor:
        """fp32 [len(rows), V] of the chosen rows of what came out of the last norm."""
        return matmul_rows(hidden_TD.index_select(0, rows), self._head.head_DV).float()
