"""A planned step through the model.

Holds the model, its cache and the way to the experts: tokens in, what follows them out, and the drafter after
them. Knows nothing of who runs next, of pages, or of what becomes of a token.

Letters: N tokens, in the order of the chunks  D hidden  V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from actors.drafter import Drafter
from actors.metrics import Sample
from actors.mtp_pass import MtpPass
from actors.options import MicroBatches
from actors.overlap import Overlap
from actors.profile import Profile
from actors.samples import exchange_samples
from actors.scheduler import Work
from actors.sequence import Sequence as LiveSequence
from actors.step import forward
from actors.trace import Recorder, recording
from actors.verify import chunks_of, draws_of
from kernels.crew import helper
from model.batch import logit_places
from model.cache import LatentCache
from model.config import ModelConfig
from model.decoder import Decoder
from model.sampler import Drawn, sample
from router.exchange import Exchange


class Runner:
    """One attention actor's model."""

    def __init__(
        self,
        decoder: Decoder,
        exchange: Exchange,
        *,
        num_pages: int,
        draft_tokens: int = 0,
        micro_batches: MicroBatches = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.decoder = decoder
        self.exchange = exchange
        self.cache = LatentCache(decoder.config, num_pages, decoder.dtype)
        self.overlap = Overlap(micro_batches)
        self.draft_tokens = draft_tokens if decoder.mtp is not None else 0
        self.drafter: Drafter | None = None
        if self.draft_tokens and decoder.mtp is not None:
            self.drafter = Drafter(MtpPass(decoder, decoder.mtp, self.cache, exchange), draft_tokens)
        self.profile = Profile()
        self._clock = clock
        self._hidden_ND = torch.empty(0)
        self._logits_BV = torch.empty(0)
        self._walked = decoder, exchange  # by the next step; what stands for them while somebody records

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def num_pages(self) -> int:
        return self.cache.num_pages

    @property
    def portable(self) -> LatentCache:
        return self.cache

    def stats(self) -> dict[str, float]:
        """What an operator asks first."""
        exchange = self.exchange.counters
        return {
            "cache_bytes_per_token": self.cache.bytes_per_token,
            "epoch": self.exchange.view.epoch,
            "retried_pairs": exchange.retried_pairs,
            "doubted_pairs": exchange.doubted_pairs,
            "lost_actors": exchange.lost_actors,
            "parked_s": exchange.parked_s,
            "split_steps": self.overlap.split_steps,
        }

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""
        yield Sample("shoal_split_steps_total", self.overlap.split_steps)
        yield Sample("shoal_overlap_changes_total", self.overlap.changes)
        yield Sample("shoal_late_compilations_total", 0)  # nothing is compiled here
        yield from self.profile.samples()
        yield Sample("shoal_device_wait_seconds_total", 0.0)  # nor is there a device beside this thread
        yield from exchange_samples(self.exchange)

    def record(self, recorder: Recorder | None) -> None:
        """Note what happens when from the next step on, or no more; safe from any thread."""
        self._walked = self.decoder, self.exchange
        if recorder is not None:
            self._walked = recording(self.decoder, self.exchange, recorder)

    def clear(self, pages: list[int]) -> None:
        """These pages have a new owner; what the last one left in them must reach nobody."""
        self.cache.clear(pages)

    def compute(self, planned: Sequence[Work]) -> None:
        """Every token and draft, and the logits of those after which one is drawn."""
        chunks = [chunk for work in planned for chunk in chunks_of(work)]
        num_rows = sum(len(chunk.token_ids) for chunk in chunks)
        micro_batches, start_s = self.overlap.choose(num_rows), self._clock()
        decoder, exchange = self._walked
        helper().wake()
        timed = self.profile.next() if exchange is self.exchange else None  # unless somebody records
        if timed is not None:
            decoder, exchange = recording(decoder, exchange, timed)
        self._hidden_ND = forward(decoder, chunks, self.cache, exchange, micro_batches)
        if timed is not None:
            self.profile.add(timed)
        self.overlap.note(num_rows, micro_batches, self._clock() - start_s)
        self._logits_BV = self.decoder.logits(self._hidden_ND, logit_places(chunks))

    def draw(self, planned: Sequence[Work]) -> list[Drawn]:
        """What follows each token of the computed step after which one is drawn."""
        return sample(self._logits_BV, [draw for work in planned for draw in draws_of(work)])

    def logits(self, hidden_ND: Tensor, rows_R: Tensor) -> Tensor:
        """fp32 [R, V] of more rows of the last step, as `hidden` gives them."""
        return self.decoder.logits(hidden_ND, rows_R)

    def follow(self, advanced: Sequence[tuple[LiveSequence, Tensor]]) -> None:
        """Let the drafter see what holds of the step: each sequence with hidden states, as `hidden` gives."""
        if self.drafter is not None:
            self.drafter.follow(advanced)

    def hidden(self, planned: Sequence[Work]) -> list[Tensor]:
        """Of each work's tokens and drafts in the last step, [tokens, D]."""
        return list(torch.split(self._hidden_ND, [work.num_tokens + work.num_drafts for work in planned]))
