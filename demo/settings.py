"""One training run as numbers.

Defaults are those of the embedded model; the report's comparisons change one of them each. Knows nothing of
tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from demo.attention import Attention
from demo.design import TRAIN_TOKENS
from demo.precision import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """rows x length tokens a step. balanced: gates' biases move. sparse: the two DSA stages follow.

    The stages are shares of `steps`: dense pre-training, then the indexer alone (dense warm-up), then all
    with sparse attention; an unbroken cosine runs over the first and the third.
    """

    name: str = "main"
    shape: str = "demo"  # "test": a model that trains in seconds, for rehearsals
    seed: int = 1
    steps: int = 28_000
    rows: int = 16
    length: int = TRAIN_TOKENS
    precision: Precision = "fp8"
    balanced: bool = True
    sparse: bool = True
    peak_lr: float = 2e-3
    last_lr_share: float = 0.03
    rise_steps: int = 200
    index_lr: float = 2e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    mtp_weight: float = 0.3  # DeepSeek-V3, section 4.2: 0.3 for most of training
    sequence_weight: float = 1e-4  # the same; 0 switches the sequence-wise loss off
    gamma: float = 1e-3  # the same
    dense_share: float = 0.6
    warmup_share: float = 0.05

    @property
    def dense_steps(self) -> int:
        return round(self.steps * self.dense_share) if self.sparse else self.steps

    @property
    def warmup_steps(self) -> int:
        return round(self.steps * self.warmup_share) if self.sparse else 0

    def phase(self, step: int) -> Attention:
        """What the attention of this step is."""
        if step < self.dense_steps:
            return "dense"
        return "warmup" if step < self.dense_steps + self.warmup_steps else "sparse"

    def lr(self, step: int) -> float:
        """Of the model; the indexer's own is constant in its warm-up and follows this one later."""
        done = step if step < self.dense_steps else max(self.dense_steps, step - self.warmup_steps)
        total = self.steps - self.warmup_steps
        if done < self.rise_steps:
            return self.peak_lr * (done + 1) / self.rise_steps
        progress = (done - self.rise_steps) / max(1, total - self.rise_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.peak_lr * (self.last_lr_share + (1 - self.last_lr_share) * cosine)

    def index_lr_at(self, step: int) -> float:
        return self.index_lr if self.phase(step) == "warmup" else self.index_lr * self.lr(step) / self.peak_lr

    def gamma_at(self, step: int) -> float:
        """Zero for the last twentieth, as DeepSeek-V3 froze its biases at the end."""
        return self.gamma if self.balanced and step < 0.95 * self.steps else 0.0
