"""One forward pass: the walk through the layers.

The heart of Shoal. Rows that need routed experts leave after the gate and come back before the next layer;
the shared expert runs while they are away, and so does the other half of the step where there are two.
Knows nothing of requests.

Letters: N tokens, in the order of the chunks  T rows of a batch  D hidden  K experts per token
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from model.batch import Batch, Chunk, build_batch, halve
from model.cache import LatentCache
from model.decoder import Decoder, Layer, Mtp
from router.exchange import Exchange

End = TypeVar("End")


@torch.inference_mode()
def forward(
    decoder: Decoder, chunks: Sequence[Chunk], cache: LatentCache, exchange: Exchange, micro_batches: int = 1
) -> Tensor:
    """Compute a step and write its tokens to the cache; [N, D] after the last norm, ready for the head.

    micro_batches: 1, or 2, which take turns: the attention of one hides the experts of the other.
    """
    exchange.begin_step()
    parts = halve(chunks) if micro_batches == 2 else (chunks,)
    batches = [
        build_batch(part, index_topk=decoder.index_topk, row_multiple=decoder.row_multiple) for part in parts
    ]
    ends = in_turns(
        [
            _walk(decoder, decoder.layers, decoder.embed(batch), batch, cache, exchange, micro_batch)
            for micro_batch, batch in enumerate(batches)
        ]
    )
    return torch.cat([decoder.last_norm(end_ND) for end_ND in ends])


@torch.inference_mode()
def forward_mtp(
    decoder: Decoder,
    mtp: Mtp,
    chunks: Sequence[Chunk],
    hidden_ND: Tensor,
    cache: LatentCache,
    exchange: Exchange,
) -> Tensor:
    """The same for the MTP layer, in the step of the forward before it.

    hidden_ND: what forward (or this) returned at the chunks' positions; the chunks' token ids are those that
    follow there. Returns what predicts the tokens after those, ready for the head.
    """
    batch = build_batch(chunks, index_topk=decoder.index_topk, row_multiple=decoder.row_multiple)
    x_TD = decoder.join(mtp, batch, batch.in_rows(hidden_ND))
    [end_ND] = in_turns([_walk(decoder, [mtp.layer], x_TD, batch, cache, exchange)])
    return decoder.norm(end_ND, mtp.norm_D)


def in_turns(walks: Sequence[Generator[None, None, End]]) -> list[End]:
    """What all return. Wherever one pauses the next goes on, so that the first is always ahead."""
    walking, ends = deque(walks), []
    while walking:
        try:
            next(walking[0])
            walking.rotate(-1)
        except StopIteration as end:
            ends.append(end.value)
            walking.popleft()
    return ends


def _walk(
    decoder: Decoder,
    layers: Sequence[Layer],
    x_TD: Tensor,
    batch: Batch,
    cache: LatentCache,
    exchange: Exchange,
    micro_batch: int = 0,
) -> Generator[None, None, Tensor]:
    """Through the layers, with a pause wherever rows are away; [N, D]."""
    turns, num_tokens = decoder.turns(batch), batch.num_tokens
    for layer in layers:
        h_TD = decoder.norm(x_TD, layer.attention_norm_D)
        x_TD = x_TD + layer.mla.attend(h_TD, batch, turns, cache)
        h_TD = decoder.norm(x_TD, layer.ffn_norm_D)
        if layer.mlp is not None:
            x_TD = x_TD + layer.mlp.forward(h_TD)
            continue
        assert layer.gate is not None and layer.shared is not None, "a layer without mlp is a MoE layer"
        weights_TK, experts_TK = layer.gate.choose(h_TD)
        rows_ND, experts_NK, weights_NK = (
            _but_padding(of, num_tokens) for of in (h_TD, experts_TK, weights_TK)
        )
        ticket = exchange.dispatch(layer.index, rows_ND, experts_NK, micro_batch)
        x_TD = x_TD + layer.shared.forward(h_TD)
        yield
        _but_padding(x_TD, num_tokens).add_(exchange.combine(ticket, weights_NK))
    return x_TD.index_select(0, batch.rows_N)


def _but_padding(rows_TD: Tensor, num_tokens: int) -> Tensor:
    return rows_TD if rows_TD.shape[0] == num_tokens else rows_TD[:num_tokens]
