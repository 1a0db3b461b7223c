"""The MTP layer once over some chunks, and what is drawn after them.

What actors/drafter.py asks for where the model is walked layer by layer. Knows nothing of which drafts hold.

Letters: N tokens, in the order of the chunks  D hidden
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from actors.step import forward_mtp
from model.batch import Chunk, logit_places
from model.cache import LatentCache
from model.decoder import Decoder, Mtp
from model.sampler import Draw, Drawn, sample
from router.exchange import Exchange


class MtpPass:
    """Callable as the drafter's Pass."""

    def __init__(self, decoder: Decoder, mtp: Mtp, cache: LatentCache, exchange: Exchange) -> None:
        self._decoder, self._mtp, self._cache, self._exchange = decoder, mtp, cache, exchange

    def __call__(
        self, chunks: Sequence[Chunk], hidden_ND: Tensor, draws: Sequence[Draw]
    ) -> tuple[Tensor, list[Drawn]]:
        out_ND = forward_mtp(self._decoder, self._mtp, chunks, hidden_ND, self._cache, self._exchange)
        places = logit_places(chunks)
        drawn = sample(self._decoder.logits(out_ND, places), draws) if draws else []
        return out_ND.index_select(0, places), drawn
