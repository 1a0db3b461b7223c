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

from kernels.norm import layer_norm, rms_norm
from kernels.rope import rotate
from kernels.rows import Weight, matmul_rows
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
    absorb_NPC: Tensor
    expand_NCV: Tensor
    out_VD: Weight
    indexer: IndexerWeights | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """cos and sin of the step's positions, fp32 [T, 1, R], as kernels.rope.rotate wants them."""

    cos_T1R: Tensor
    sin_T1R: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Projected:
    """The step's tokens on the way in. latent_TC and index_key_TI go to the cache as they are."""

    query_TNX: Tensor
    query_rotary_TNR: Tensor
    latent_TC: Tensor
    index_query_THI: Tensor | None
    index_key_TI: Tensor | None
    head_weights_TH: Tensor


class Mla:
    """Attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int, weights: MlaWeights) -> None:
        self._config = config
        self._layer = layer
        self._weights = weights
        self._index_heads = config.indexer.num_heads if config.indexer else 0
        self._index_dims = config.indexer.head_dim if config.indexer else 0

    def attend(self, h_TD: Tensor, batch: Batch, rotation: Rotation, cache: LatentCache) -> Tensor:
        """Write the step's tokens to the cache and return what they gather from it, [T, D] in h's dtype."""
        config, weights = self._config, self._weights
        given = self._project(h_TD, rotation)
        cache.write(self._layer, batch.slots_T, given.latent_TC, given.index_key_TI)

        query_NTP = given.query_TNX[..., : config.qk_nope_head_dim].transpose(0, 1)
        carried_TNC = torch.bmm(query_NTP, weights.absorb_NPC).transpose(0, 1)
        query_TNC = torch.cat([carried_TNC, given.query_rotary_TNR], -1)
        gathered_TNC = query_TNC.new_zeros(query_TNC.shape[0], config.num_heads, config.kv_lora_rank)
        for group in batch.groups:
            gathered_TNC[group.rows] = self._gather(query_TNC, given, group, cache)
        values_NTV = torch.bmm(gathered_TNC.transpose(0, 1), weights.expand_NCV)
        return matmul_rows(values_NTV.transpose(0, 1).reshape(h_TD.shape[0], -1), weights.out_VD)

    def _project(self, h_TD: Tensor, rotation: Rotation) -> _Projected:
        """Down to the latents, up to the queries, and every rotary part turned in one go."""
        config, weights = self._config, self._weights
        num_rows, heads = h_TD.shape[0], config.num_heads
        rotary, query_rank = config.qk_rope_head_dim, config.q_lora_rank or 0
        widths = [query_rank, config.kv_lora_rank, rotary, self._index_dims, self._index_heads]
        query_in, latent, key_rotary, index_key, head_weights_TH = torch.split(
            matmul_rows(h_TD, weights.down_DA), widths, dim=-1
        )
        if weights.query_norm_K is None:
            query_in = h_TD
        else:
            query_in = rms_norm(query_in, weights.query_norm_K, config.rms_norm_eps)
        up_TX = matmul_rows(query_in, weights.up_KX)
        query_TNX = up_TX[:, : heads * config.qk_head_dim].view(num_rows, heads, -1)
        latent = rms_norm(latent, weights.latent_norm_C, config.rms_norm_eps)
        turning = [query_TNX[..., config.qk_nope_head_dim :], key_rotary[:, None]]
        if weights.indexer is None:
            turned = rotate(torch.cat(turning, 1), rotation.cos_T1R, rotation.sin_T1R)
            index_query, new_index_key = None, None
        else:
            norm = weights.indexer
            index_key = layer_norm(index_key, norm.key_norm_weight_I, norm.key_norm_bias_I, INDEX_NORM_EPS)
            index_query = up_TX[:, heads * config.qk_head_dim :].view(num_rows, self._index_heads, -1)
            turning += [index_query[..., :rotary], index_key[:, None, :rotary]]
            turned = rotate(torch.cat(turning, 1), rotation.cos_T1R, rotation.sin_T1R)
            index_query = torch.cat([turned[:, heads + 1 : -1], index_query[..., rotary:]], -1)
            new_index_key = torch.cat([turned[:, -1], index_key[:, rotary:]], -1)
        return _Projected(
            query_TNX=query_TNX,
            query_rotary_TNR=turned[:, :heads],
            latent_TC=torch.cat([latent, turned[:, heads]], -1),
            index_query_THI=index_query,
            index_key_TI=new_index_key,
            head_weights_TH=head_weights_TH,
        )

    def _gather(self, query_TNC: Tensor, given: _Projected, group: QueryGroup, cache: LatentCache) -> Tensor:
        """Softmax-weighted latents of one group's queries, [Q, N, C]."""
        config, latent_SC = self._config, cache.latent_SC[self._layer]
        if group.sparse:
            assert given.index_query_THI is not None and config.indexer is not None, "sparse without indexer"
            slots_QJ = choose_slots(
                given.index_query_THI[group.rows],
                given.head_weights_TH[group.rows],
                cache.index_SI[self._layer],
                group,
                config.indexer.topk,
            )
            keys_BLC = latent_SC.index_select(0, slots_QJ.view(-1)).view(*slots_QJ.shape, -1)
        else:
            keys_BLC = pages_of(latent_SC, group.pages_BP)
        return attend_keys(
            query_TNC[group.rows],
            keys_BLC,
            group.bias_Q1L,
            scale=config.softmax_scale,
            value_dims=config.kv_lora_rank,
        )


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
