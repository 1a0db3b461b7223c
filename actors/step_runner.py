"""What an engine needs of whoever computes its steps.

Two forms: actors/runner.py walks the layers, with experts beyond an exchange; actors/row_runner.py
computes rows on one GPU. Knows nothing of who runs next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from actors.metrics import Sample
from actors.scheduler import Work
from actors.sequence import Sequence as LiveSequence
from actors.trace import Recorder
from model.cache import LatentCache
from model.config import ModelConfig
from model.sampler import Drawn
from router.exchange import Exchange


class StepRunner(Protocol):
    """In every step: clear, compute, draw, hidden, follow.

    exchange: whose view it computes with. draft_tokens: most drafts of a sequence, 0 where nobody drafts.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def exchange(self) -> Exchange: ...

    @property
    def num_pages(self) -> int: ...

    @property
    def draft_tokens(self) -> int: ...

    @property
    def portable(self) -> LatentCache | None:
        """The cache, if its pages can go to another actor and come from one."""

    def clear(self, pages: list[int]) -> None:
        """These pages have a new owner; what the last one left in them must reach nobody."""

    def compute(self, planned: Sequence[Work]) -> None:
        """Every token and draft of the step, and what the sampler needs of them."""

    def draw(self, planned: Sequence[Work]) -> list[Drawn]:
        """What follows each token of the computed step after which one is drawn, as `draws_of` lists them."""

    def hidden(self, planned: Sequence[Work]) -> list[Tensor]:
        """Of each work's tokens and drafts in the computed step, [tokens, D]."""

    def logits(self, hidden_ND: Tensor, rows_R: Tensor) -> Tensor:
        """fp32 [R, V] on the CPU, of a few more rows of the computed step, as `hidden` gives them."""

    def follow(self, advanced: Sequence[tuple[LiveSequence, Tensor]]) -> None:
        """Let the drafter see what holds of the step: each sequence with hidden states, as `hidden` gives."""

    def stats(self) -> dict[str, float]:
        """What an operator asks first."""

    def samples(self) -> Iterator[Sample]:
        """The metrics; read from another thread."""

    def record(self, recorder: Recorder | None) -> None:
        """Note what happens when from the next step on, or no more; safe from any thread."""
