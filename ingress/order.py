"""A checked request, ready for the engine.

Prompt ids, sampling and how the answer is to be shown. Knows nothing of the bodies that orders are made of
(ingress/desk.py), of HTTP and of how answers are written.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.messages import Sampling
from ingress.constraints import Constraint
from ingress.output import OutputOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Prompt i makes the choices i * n to i * n + n - 1; `samplings` has one entry per choice.

    echoes: the text of each prompt, where it is to be repeated; echoes_specials: they are of token ids, and
    spell special tokens out. deadline_s: from when the whole request is
    here. constraint: what the answers are held to, already in the samplings.
    """

    prompts: tuple[list[int], ...]
    samplings: tuple[Sampling, ...]
    output: OutputOptions
    is_stream: bool
    include_usage: bool
    continuous_usage: bool
    echoes: tuple[str, ...] = ()
    echoes_specials: bool = False
    return_token_ids: bool
    cache_salt: str
    is_batch: bool
    deadline_s: float | None
    ignored_fields: str
    constraint: Constraint | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def choices_per_prompt(self) -> int:
        return len(self.samplings) // len(self.prompts)

    def prompt_of(self, choice: int) -> list[int]:
        return self.prompts[choice // self.choices_per_prompt]
