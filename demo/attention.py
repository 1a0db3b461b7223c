"""MLA and the lightning indexer as training computes them.

The unabsorbed form over whole sequences: dense, or sparse by the indexer's choice, with the indexer's own
loss. Serving computes the same function in absorbed form over pages (model/mla.py); a test holds them
together. Knows nothing of experts.

DeepSeek-V3.2, section 2.1: the indexer learns from the attention it serves. Its loss is KL(p || softmax(I)),
where p is the attention summed over heads and normalised; its inputs are detached, so that this loss alone
moves it.

Letters: B sequences  T queries  S keys  D hidden  N heads  R rotary dims  H index heads  I index dims
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from demo.parameters import Parameters
from demo.precision import Arithmetic
from model.config import ModelConfig
from model.mla import INDEX_NORM_EPS

Attention = Literal["dense", "warmup", "sparse"]
HIDDEN_SCORE = -1e30  # finite, so that a row without keys stays finite


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What all layers of one forward pass share.

    visible_BTS: bool, same document and not later. cos, sin: fp32, of each token's position. topk: keys that
    a query keeps when sparse. counted_BT: rows that the indexer's loss counts (padding is left out).
    """

    attention: Attention
    visible_BTS: Tensor
    counted_BT: Tensor
    cos_BT1R: Tensor
    sin_BT1R: Tensor
    topk: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Attended:
    """out_BTD goes to the residual stream. index_loss: mean KL over the counted queries, 0 when dense."""

    out_BTD: Tensor
    index_loss: Tensor


class MlaTrainer:
    """The attention of one layer; `prefix` ends in `self_attn`."""

    def __init__(
        self, config: ModelConfig, prefix: str, parameters: Parameters, arithmetic: Arithmetic
    ) -> None:
        self._config, self._arithmetic = config, arithmetic
        self._prefix, self._parameters = prefix, parameters

    def attend(self, h_BTD: Tensor, context: Context) -> Attended:
        config, arithmetic = self._config, self._arithmetic
        batch, length = h_BTD.shape[:2]
        query_down, latent_down = arithmetic.linears(
            h_BTD, self._of("q_a_proj.weight"), self._of("kv_a_proj_with_mqa.weight")
        )
        query_rank = self._norm(query_down, "q_a_layernorm")
        query_BTNX = self._linear(query_rank, "q_b_proj").view(batch, length, config.num_heads, -1)
        latent, key_rotary = torch.split(latent_down, [config.kv_lora_rank, config.qk_rope_head_dim], -1)
        up_BTNX = self._linear(self._norm(latent, "kv_a_layernorm"), "kv_b_proj").view(
            batch, length, config.num_heads, -1
        )
        key_nope, value_BTNV = torch.split(up_BTNX, [config.qk_nope_head_dim, config.v_head_dim], -1)
        query_nope, query_rotary = torch.split(
            query_BTNX, [config.qk_nope_head_dim, config.qk_rope_head_dim], -1
        )
        query_rotary = self._turn_interleaved(query_rotary, context)
        key_rotary = self._turn_interleaved(key_rotary[:, :, None], context).expand(*key_nope.shape[:3], -1)
        scores_BNTS = torch.matmul(
            torch.cat([query_nope, query_rotary], -1).transpose(1, 2),
            torch.cat([key_nope, key_rotary], -1).permute(0, 2, 3, 1),
        )
        index_BTS, seen_BTS = None, context.visible_BTS
        if context.attention != "dense":
            index_BTS = self._index_scores(h_BTD.detach(), query_rank.detach(), context)
        if context.attention == "sparse" and index_BTS is not None:
            seen_BTS = kept_keys(index_BTS.detach(), seen_BTS, context.topk)
        softmax = arithmetic.fused(masked_softmax)
        probs_BNTS = softmax(scores_BNTS, seen_BTS[:, None], config.softmax_scale)
        gathered = torch.matmul(probs_BNTS, value_BTNV.transpose(1, 2)).transpose(1, 2)
        index_loss = probs_BNTS.new_zeros((), dtype=torch.float32)
        if index_BTS is not None:
            loss_BT = arithmetic.fused(index_divergence)(probs_BNTS.detach(), index_BTS, seen_BTS)
            index_loss = (loss_BT * context.counted_BT).sum() / context.counted_BT.sum().clamp(min=1)
        return Attended(
            out_BTD=self._linear(gathered.reshape(batch, length, -1), "o_proj"), index_loss=index_loss
        )

    def _index_scores(self, h_BTD: Tensor, query_rank: Tensor, context: Context) -> Tensor:
        """I[t, s], fp32 [B, T, S]."""
        assert self._config.indexer is not None, "a deepseek_v3 model has no indexer to train"
        heads, dims = self._config.indexer.num_heads, self._config.indexer.head_dim
        batch, length = h_BTD.shape[:2]
        query = self._linear(query_rank, "indexer.wq_b").view(batch, length, heads, dims)
        key = F.layer_norm(
            self._linear(h_BTD, "indexer.wk").float(),
            (dims,),
            self._of("indexer.k_norm.weight"),
            self._of("indexer.k_norm.bias"),
            INDEX_NORM_EPS,
        ).to(query.dtype)
        query, key = self._turn_half(query, context), self._turn_half(key[:, :, None], context)[:, :, 0]
        weights = h_BTD.float() @ self._of("indexer.weights_proj.weight").t() * (heads**-0.5 * dims**-0.5)
        match = torch.bmm(query.reshape(batch, length * heads, dims), key.transpose(1, 2))
        return self._arithmetic.fused(weighted_matches)(match.view(batch, length, heads, -1), weights)

    def _turn_interleaved(self, x_BTNR: Tensor, context: Context) -> Tensor:
        """The pairs (2i, 2i + 1) are put into half-split order first, as the loader does with weight rows."""
        half_split = x_BTNR.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
        return self._arithmetic.fused(turned)(half_split, context.cos_BT1R, context.sin_BT1R)

    def _turn_half(self, x_BTNI: Tensor, context: Context) -> Tensor:
        rotary = self._config.qk_rope_head_dim
        turn = self._arithmetic.fused(turned)
        return torch.cat(
            [turn(x_BTNI[..., :rotary], context.cos_BT1R, context.sin_BT1R), x_BTNI[..., rotary:]], -1
        )

    def _of(self, name: str) -> Tensor:
        return self._parameters[f"{self._prefix}.{name}"]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return self._arithmetic.linear(x, self._of(f"{name}.weight"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return self._arithmetic.fused(rms_normed)(x, self._of(f"{name}.weight"), self._config.rms_norm_eps)


def kept_keys(index_BTS: Tensor, visible_BTS: Tensor, topk: int) -> Tensor:
    """The topk best visible keys of each query, ties to the first; all of them where there are no more."""
    if topk >= index_BTS.shape[-1]:
        return visible_BTS
    masked = index_BTS.masked_fill(~visible_BTS, HIDDEN_SCORE)
    least = masked.topk(topk, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, ties = masked > least, masked == least
    room = topk - above.sum(-1, keepdim=True)
    return visible_BTS & (above | (ties & (ties.cumsum(-1) <= room)))


def masked_softmax(scores: Tensor, seen: Tensor, scale: float) -> Tensor:
    return torch.softmax((scores.float() * scale).masked_fill(~seen, HIDDEN_SCORE), -1).to(scores.dtype)


def weighted_matches(match_BTHS: Tensor, weights_BTH: Tensor) -> Tensor:
    return (match_BTHS.float().relu() * weights_BTH[..., None]).sum(2)


def index_divergence(probs_BNTS: Tensor, index_BTS: Tensor, seen_BTS: Tensor) -> Tensor:
    """KL(p || softmax(I)) over the seen keys, fp32 [B, T]."""
    target = probs_BNTS.float().mean(1)
    predicted = torch.log_softmax(index_BTS.masked_fill(~seen_BTS, HIDDEN_SCORE), -1)
    return (target * (target.clamp(min=1e-12).log() - predicted)).sum(-1)


def rms_normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def turned(x_BTNR: Tensor, cos_BT1R: Tensor, sin_BT1R: Tensor) -> Tensor:
    """kernels.rope.rotate, where gradients flow."""
    wide = x_BTNR.float()
    return (wide * cos_BT1R + wide.roll(x_BTNR.shape[-1] // 2, -1) * sin_BT1R).to(x_BTNR.dtype)
