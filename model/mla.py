"""Multi-head latent attention, absorbed, over pages.

One form serves prefill and decode, so that their bits agree: the query is carried into latent space (q_nope @
W_UK), scores and sums run over the cached latents, and the result is carried out (@ W_UV). Keys are those
that the indexer chose (model/indexer.py), or all of them while there are no more than index_topk. Knows
nothing of where rows come from. Paper: DeepSeek-V2, arXiv 2405.04434, section 2.1; the absorbed form is its
appendix C.

Letters: T rows  D hidden  N heads  C latent  R rotary dims  P nope dims  V value dims
         I index dims  H index heads  Q queries of a group  L keys of a group  J chosen keys
         B = Q, or 1 when all queries share one sequence's keys
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attend_rows import attend_pages, attend_slots, can_attend
from kernels.attention_few import AttentionShape, FewAttention
from kernels.few_rows import most_few
from kernels.latent_rows import TokenNorms, Turns, keep_tokens, turn_heads
from kernels.panel import Panels
from kernels.rows import Weight, lie_in_few, matmul_heads, matmul_rows
from model.batch import Batch, QueryGroup
from model.cache import LatentCache, pages_of
from model.config import ModelConfig
from model.indexer import choose_slots

INDEX_NORM_EPS = 1e-6  # the indexer's LayerNorm, DeepSeek-V3.2 inference code


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexerWeights:
    """key_norm_weight, key_norm_bias: fp32 [I]. Its projections live fused inside MlaWeights."""

    key_norm_weight_I: Tensor
    key_norm_bias_I: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MlaWeights:
    """One layer's attention, fused at load, `[inputs, outputs]` row-major.

    down_DA: columns [q latent | kv latent C | rotary key R | index key I | index head weights H]; the q
    latent part is absent when the checkpoint has no q_lora_rank. up_KX: from the q latent (or D) to
    [N heads x (P + R) | H index heads x I]. absorb_NPC = W_UK, expand_NCV = W_UV. Rotary columns are
    half-split.
    """

    down_DA: Weight
    query_norm_K: Tensor | None
    latent_norm_C: Tensor
    up_KX: Weight
    absorb_NPC: Tensor | Panels
    expand_NCV: Tensor | Panels
    out_VD: Weight
    indexer: IndexerWeights | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the step's tokens ask of the cache, and the two products, of which the indexer has its part."""

    query_TNC: Tensor
    down_TA: Tensor
    up_TX: Tensor


class Mla:
    """Attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int, weights: MlaWeights) -> None:
        self._config = config
        self._layer = layer
        self._weights = weights
        indexer = weights.indexer
        self._norms = TokenNorms(
            query_K=weights.query_norm_K,
            latent_C=weights.latent_norm_C,
            index_weight_I=indexer.key_norm_weight_I if indexer else None,
            index_bias_I=indexer.key_norm_bias_I if indexer else None,
            eps=config.rms_norm_eps,
            index_eps=INDEX_NORM_EPS,
        )
        self._few = self._for_few_rows()

    def _for_few_rows(self) -> FewAttention | None:
        """None where few rows cannot do without the BLAS."""
        config, weights = self._config, self._weights
        products = (weights.down_DA, weights.up_KX, weights.absorb_NPC, weights.expand_NCV, weights.out_VD)
        lies = [lie for weight in products if (lie := lie_in_few(weight)) is not None]
        if len(lies) < len(products):
            return None
        shape = AttentionShape(
            hidden=config.hidden_size,
            rank=config.q_lora_rank or 0,
            latent=config.kv_lora_rank,
            rotary=config.qk_rope_head_dim,
            nope=config.qk_nope_head_dim,
            value=config.v_head_dim,
            heads=config.num_heads,
            index_dims=config.indexer.head_dim if config.indexer else 0,
            index_heads=config.indexer.num_heads if config.indexer else 0,
        )
        return FewAttention(shape, self._norms, *lies)

    def attend(self, h_TD: Tensor, batch: Batch, turns: Turns, cache: LatentCache) -> Tensor:
        """Write the step's tokens to the cache and return what they gather from it, [T, D] in h's dtype."""
        config, weights = self._config, self._weights
        few = self._few if h_TD.shape[0] <= most_few() else None
        asked = (
            self._ask(h_TD, batch, turns, cache)
            if few is None
            else self._ask_few(few, h_TD, batch, turns, cache)
        )
        gathered_TNC = h_TD.new_empty(h_TD.shape[0], config.num_heads, config.kv_lora_rank)
        if batch.num_tokens < h_TD.shape[0]:
            gathered_TNC[batch.num_tokens :] = 0.0  # rows of padding ask nothing
        for group in batch.groups:
            self._gather(asked, group, cache, gathered_TNC[group.rows])
        if few is not None:
            return few.answer(gathered_TNC)
        values_TNV = h_TD.new_empty(len(h_TD), config.num_heads, config.v_head_dim)
        matmul_heads(gathered_TNC, weights.expand_NCV, values_TNV)
        return matmul_rows(values_TNV.flatten(1), weights.out_VD)

    def _ask(self, h_TD: Tensor, batch: Batch, turns: Turns, cache: LatentCache) -> Asked:
        """Down to the latents, which stay in the cache, and up to the queries."""
        config, weights = self._config, self._weights
        heads, latent, rotary = config.num_heads, config.kv_lora_rank, config.qk_rope_head_dim
        latent_SC, index_SI = cache.latent_SC[self._layer], cache.index_SI[self._layer]
        down_TA = matmul_rows(h_TD, weights.down_DA)
        query_TK = keep_tokens(down_TA, self._norms, turns, batch.slots_T, latent_SC, index_SI)
        up_TX = matmul_rows(h_TD if query_TK is None else query_TK, weights.up_KX)
        own_TNX = up_TX[:, : heads * config.qk_head_dim].view(len(h_TD), heads, -1)
        query_TNC = h_TD.new_empty(len(h_TD), heads, latent + rotary)
        matmul_heads(own_TNX[..., : config.qk_nope_head_dim], weights.absorb_NPC, query_TNC[..., :latent])
        turn_heads(own_TNX[..., config.qk_nope_head_dim :], turns, query_TNC[..., latent:])
        if (indexer := config.indexer) is not None:
            index_query_TX = up_TX[:, heads * config.qk_head_dim :]
            index_query_THI = index_query_TX.view(len(h_TD), indexer.num_heads, indexer.head_dim)
            turn_heads(index_query_THI[..., :rotary], turns, index_query_THI[..., :rotary])
        return Asked(query_TNC=query_TNC, down_TA=down_TA, up_TX=up_TX)

    def _ask_few(
        self, few: FewAttention, h_TD: Tensor, batch: Batch, turns: Turns, cache: LatentCache
    ) -> Asked:
        latent_SC, index_SI = cache.latent_SC[self._layer], cache.index_SI[self._layer]
        query_TNC, down_TA, up_TX = few.ask(h_TD, turns, batch.slots_T, latent_SC, index_SI)
        return Asked(query_TNC=query_TNC, down_TA=down_TA, up_TX=up_TX)

    def choose(self, asked: Asked, group: QueryGroup, cache: LatentCache) -> Tensor:
        """The indexer's slots of one group's queries, [Q, J]."""
        indexer = self._config.indexer
        assert indexer is not None, "sparse without indexer"
        query_QX = asked.up_TX[group.rows, self._config.num_heads * self._config.qk_head_dim :]
        return choose_slots(
            query_QX.view(query_QX.shape[0], indexer.num_heads, indexer.head_dim),
            asked.down_TA[group.rows, asked.down_TA.shape[1] - indexer.num_heads :],
            cache.index_SI[self._layer],
            group,
            indexer.topk,
        )

    def _gather(self, asked: Asked, group: QueryGroup, cache: LatentCache, out_QNC: Tensor) -> None:
        """Softmax-weighted latents of one group's queries."""
        latent_SC, query_QNC = cache.latent_SC[self._layer], asked.query_TNC[group.rows]
        scale = self._config.softmax_scale
        if can_attend(query_QNC) and group.sparse:
            attend_slots(query_QNC, latent_SC, self.choose(asked, group, cache), out_QNC, scale=scale)
        elif can_attend(query_QNC):
            attend_pages(query_QNC, latent_SC, group.pages_BP, group.num_keys_Q, out_QNC, scale=scale)
        else:
            bias_Q1L = None if group.sparse else group.bias_Q1L
            if group.sparse:
                slots_QJ = self.choose(asked, group, cache)
                keys_BLC = latent_SC.index_select(0, slots_QJ.view(-1)).view(*slots_QJ.shape, -1)
            else:
                keys_BLC = pages_of(latent_SC, group.pages_BP)
            values = out_QNC.shape[2]
            out_QNC.copy_(attend_keys(query_QNC, keys_BLC, bias_Q1L, scale=scale, value_dims=values))


def attend_keys(
    query_QNC: Tensor, keys_BLC: Tensor, bias_Q1L: Tensor | None, *, scale: float, value_dims: int
) -> Tensor:
    """Attention of each query over its own keys; keys are whole latents, values their first value_dims.

    query_QNC: [Q, N, C + R]. keys_BLC: B = Q or 1. bias_Q1L: fp32 0 or -inf, None = every key counts. Returns
    [Q, N, value_dims] in query's dtype.
    """
    keys_QLC = keys_BLC.expand(query_QNC.shape[0], -1, -1)
    scores_QNL = torch.bmm(query_QNC, keys_QLC.transpose(1, 2)).float().mul_(scale)
    if bias_Q1L is not None:
        scores_QNL += bias_Q1L
    weights_QNL = torch.softmax(scores_QNL, -1).to(query_QNC.dtype)
    return torch.bmm(weights_QNL, keys_QLC[..., :value_dims])
