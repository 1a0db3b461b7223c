"""What computes the rows of a RowRunner.

On a GPU model/fp8_graphs.py; for tests a reference on the CPU. Knows nothing of sequences.

Letters: R rows  D hidden  V vocabulary  L MoE layers  E experts
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from model.row_buffers import RowSpan
from model.sampler import Draw, Drawn


class RowModel(Protocol):
    """Computes what stands in a RowBuffers; only numbers of rows that it was prepared for."""

    @property
    def late_compilations(self) -> int:
        """Kernels compiled after `prepare`."""

    def prepare(self, rows: Iterable[int], draws: Iterable[int]) -> None:
        """For walks of these numbers of rows, and draws of those."""

    def walk(self, rows: int, *, mtp: bool = False) -> None:
        """The first rows through all layers, from `ids` to hidden_RD.

        mtp: through the MTP layer, from given_RD and the `ids` that follow.
        """

    def walk_many(self, spans: Sequence[RowSpan], *, mtp: bool = False) -> None:
        """The same for the rows of these spans, which stand one after the other."""

    def draw(self, rows: int) -> None:
        """From the `places` of hidden_RD to logits_RV and drawn_3R."""

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """fp32 [R, V], in memory of their own, of at most 64 rows."""

    def sample(self, rows: Sequence[int], draws: Sequence[Draw]) -> list[Drawn]:
        """A token for each of these rows of logits_RV, finite ones, that asks for more than the likeliest."""

    def expert_pairs(self) -> Tensor:
        """int64 [L, E] on the CPU: pairs (token, expert) of all walks since `prepare`; from any thread."""
