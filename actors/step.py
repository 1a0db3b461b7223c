"""One forward pass: the walk through the layers.

The heart of Shoal. Rows that need routed experts leave after the gate and come back before the next layer;
the shared expert runs while they are away. Knows nothing of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.batch import Batch
from model.cache import LatentCache
from model.decoder import Decoder, Layer, Mtp
from model.mla import Rotation
from router.exchange import Exchange


@torch.inference_mode()
def forward(decoder: Decoder, batch: Batch, cache: LatentCache, exchange: Exchange) -> Tensor:
    """Compute a step and write its tokens to the cache; [T, D] after the last norm, ready for the head."""
    exchange.begin_step()
    walk = _Walk(decoder, batch, decoder.rotation(batch), cache, exchange)
    x_TD = decoder.embed(batch)
    for layer in decoder.layers:
        x_TD = walk.through(layer, x_TD)
    return decoder.last_norm(x_TD)


@torch.inference_mode()
def forward_mtp(
    decoder: Decoder, mtp: Mtp, batch: Batch, hidden_TD: Tensor, cache: LatentCache, exchange: Exchange
) -> Tensor:
    """The same for the MTP layer, in the step of the forward before it.

    hidden_TD: what forward (or this) returned at the batch's positions; the batch's token ids are those that
    follow there. Returns what predicts the tokens after those, ready for the head.
    """
    walk = _Walk(decoder, batch, decoder.rotation(batch), cache, exchange)
    return decoder.norm(walk.through(mtp.layer, decoder.join(mtp, batch, hidden_TD)), mtp.norm_D)


@dataclass(frozen=True, slots=True)
class _Walk:
    decoder: Decoder
    batch: Batch
    rotation: Rotation
    cache: LatentCache
    exchange: Exchange

    def through(self, layer: Layer, x_TD: Tensor) -> Tensor:
        """One layer: attention, then the dense network or the experts."""
        num_tokens = self.batch.num_tokens
        h_TD = self.decoder.norm(x_TD, layer.attention_norm_D)
        x_TD = x_TD + layer.mla.attend(h_TD, self.batch, self.rotation, self.cache)
        h_TD = self.decoder.norm(x_TD, layer.ffn_norm_D)
        if layer.mlp is not None:
            return x_TD + layer.mlp.forward(h_TD)
        assert layer.gate is not None and layer.shared is not None, "a layer without mlp is a MoE layer"
        weights_TK, experts_TK = layer.gate.choose(h_TD)
        ticket = self.exchange.dispatch(layer.index, h_TD[:num_tokens], experts_TK[:num_tokens])
        x_TD = x_TD + layer.shared.forward(h_TD)
        x_TD[:num_tokens] += self.exchange.combine(ticket, weights_TK[:num_tokens])
        return x_TD
