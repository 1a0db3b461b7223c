"""The whole model as training computes it.

Packed sequences in, hidden states of the main model and of the MTP layer out. Knows nothing of losses'
weights, of optimisers and of data. Serving computes the same function step by step (model/decoder.py,
actors/step.py).

Letters: B sequences  T tokens  D hidden  V vocabulary  E experts
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from demo.attention import Attention, Context, MlaTrainer, rms_normed
from demo.moe import MoeTrainer, Routed
from demo.parameters import Parameters
from demo.precision import Arithmetic
from model.config import ModelConfig
from model.rope import rope_tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Documents side by side. documents: 0 is padding; a document's tokens are adjacent. int64 [B, T].

    positions: that the rotation sees, within the model's context; None: places in the row.
    """

    tokens_BT: Tensor
    documents_BT: Tensor
    positions_BT: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """hidden_BTD after the last norm predicts the next token, mtp_BTD the one after.

    loads, choices: per MoE layer, the MTP layer last. index_loss, sequence_loss: means over layers.
    """

    hidden_BTD: Tensor
    mtp_BTD: Tensor
    index_loss: Tensor
    sequence_loss: Tensor
    loads: list[Tensor]
    choices: list[Tensor]


@dataclass(frozen=True, slots=True)
class _Block:
    prefix: str
    attention: MlaTrainer
    moe: MoeTrainer
    is_dense: bool


class Network:
    """Parameters with a forward pass."""

    def __init__(self, config: ModelConfig, parameters: Parameters, arithmetic: Arithmetic) -> None:
        self.config, self.parameters, self.arithmetic = config, parameters, arithmetic
        cos, sin = rope_tables(config.rope, config.qk_rope_head_dim, config.max_position_embeddings)
        device = parameters["model.norm.weight"].device
        self._cos, self._sin = cos.to(device)[:, None], sin.to(device)[:, None]
        blocks = [self._block(layer) for layer in range(config.num_layers + 1)]
        self._blocks, self._mtp = blocks[:-1], blocks[-1]

    def forward(self, packed: Packed, *, attention: Attention, topk: int | None = None) -> Passed:
        """topk: keys a query keeps when sparse; the config's index_topk if None."""
        context = self._context(packed, attention, topk)
        passed: list[Routed] = []
        index_losses: list[Tensor] = []
        table = self.parameters["model.embed_tokens.weight"].to(self.arithmetic.dtype)
        embedded = torch.nn.functional.embedding(packed.tokens_BT, table)
        x = embedded
        for block in self._blocks:
            x = self._pass(block, x, context, passed, index_losses)
        hidden = self._norm(x, "model.norm.weight")
        x = self._pass(self._mtp, self._mtp_input(hidden, embedded), context, passed, index_losses)
        return Passed(
            hidden_BTD=hidden,
            mtp_BTD=self._norm(x, f"{self._mtp.prefix}.shared_head.norm.weight"),
            index_loss=torch.stack(index_losses).mean(),
            sequence_loss=torch.stack([routed.sequence_loss for routed in passed]).mean(),
            loads=[routed.load_E for routed in passed],
            choices=[routed.experts_MK for routed in passed],
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 [..., V]; the head stays out of FP8, as in the released models."""
        weight = self.parameters["lm_head.weight"].to(self.arithmetic.dtype)
        return (hidden @ weight.t()).float()

    def move_biases(self, loads: list[Tensor], gamma: Tensor) -> None:
        """Each gate against its own overload."""
        mixtures = [block.moe for block in (*self._blocks, self._mtp) if not block.is_dense]
        for moe, load_E in zip(mixtures, loads, strict=True):
            moe.move_bias(load_E, gamma)

    def _block(self, layer: int) -> _Block:
        prefix = f"model.layers.{layer}"
        return _Block(
            prefix,
            MlaTrainer(self.config, f"{prefix}.self_attn", self.parameters, self.arithmetic),
            MoeTrainer(self.config, f"{prefix}.mlp", self.parameters, self.arithmetic),
            self.config.is_dense(layer),
        )

    def _pass(
        self, block: _Block, x: Tensor, context: Context, passed: list[Routed], index_losses: list[Tensor]
    ) -> Tensor:
        attended = block.attention.attend(self._norm(x, f"{block.prefix}.input_layernorm.weight"), context)
        index_losses.append(attended.index_loss)
        x = x + attended.out_BTD
        h = self._norm(x, f"{block.prefix}.post_attention_layernorm.weight")
        if block.is_dense:
            return x + block.moe.mlp(h, "")
        routed = block.moe.forward(h)
        passed.append(routed)
        return x + routed.out_MD.view_as(x)

    def _mtp_input(self, hidden_BTD: Tensor, embedded_BTD: Tensor) -> Tensor:
        """Hidden of position i beside the embedding of token i + 1; the embedding comes first."""
        prefix, following = self._mtp.prefix, embedded_BTD.roll(-1, 1)
        joined = torch.cat(
            [
                self._norm(following, f"{prefix}.enorm.weight"),
                self._norm(hidden_BTD, f"{prefix}.hnorm.weight"),
            ],
            -1,
        )
        return joined @ self.parameters[f"{prefix}.eh_proj.weight"].to(self.arithmetic.dtype).t()

    def _context(self, packed: Packed, attention: Attention, topk: int | None) -> Context:
        documents, length = packed.documents_BT, packed.tokens_BT.shape[1]
        positions = torch.arange(length, device=documents.device)[None]
        if packed.positions_BT is not None:
            positions = packed.positions_BT
        causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
        default = self.config.indexer.topk if self.config.indexer else length
        return Context(
            attention=attention,
            visible_BTS=(documents[:, :, None] == documents[:, None, :]) & causal,
            counted_BT=(documents > 0).float(),
            cos_BT1R=self._cos[positions],
            sin_BT1R=self._sin[positions],
            topk=default if topk is None else topk,
        )

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return self.arithmetic.fused(rms_normed)(x, self.parameters[name], self.config.rms_norm_eps)
