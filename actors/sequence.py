"""One request while it lives on an attention actor.

Token ids, pages, how far they are computed. Everything but the pages can be rebuilt from (prompt, emitted,
sampling), which is what the ingress keeps. Knows nothing of scheduling.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor

from actors.messages import ANY_TERMS, FINISH_LENGTH, FINISH_STOP, Terms
from actors.pace import Pace
from actors.scores import PromptScores
from model.cache import PAGE_TOKENS
from model.matcher import Matcher
from model.sampler import Draw
from model.sampling import Sampling


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """`owner` is whoever must be told of its tokens. 0 <= num_computed <= len(tokens).

    A sequence whose tokens are all computed but the last is decoding. drafts: guesses at the next tokens, for
    the next step to verify. unfollowed: hidden states that the MTP layer has not read yet, of its last
    computed tokens; num_followed: how many it has read. num_published: pages that others can find; page_keys:
    what by (actors/prefix.py). num_cached: tokens that it did not compute when it first began; num_known:
    those that it need not, as far as was known when it came. scores: of its prompt, where they are wanted,
    until they are told. matcher: where it stands in its grammar, if it has one. ticket: its place by age
    among all. since_s: when it came; begun_s: when its first step began; num_steps: that it was in;
    experts_s: how long those waited for experts.
    """

    request_id: str
    owner: Hashable
    tokens: list[int]
    num_prompt: int
    sampling: Sampling
    eos_ids: tuple[int, ...]
    max_context: int
    terms: Terms = ANY_TERMS
    matcher: Matcher | None = None
    scores: PromptScores | None = None
    num_computed: int = 0
    pages: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    unfollowed: list[Tensor] = field(default_factory=list)
    num_followed: int = 0
    num_published: int = 0
    page_keys: list[bytes] = field(default_factory=list)
    num_cached: int | None = None
    num_known: int = 0
    pace: Pace = field(default_factory=Pace)
    finish: str | None = None
    ticket: int = 0
    since_s: float = 0.0
    begun_s: float | None = None
    num_steps: int = 0
    experts_s: float = 0.0
    num_restarts: int = 0

    @property
    def num_emitted(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def is_decoding(self) -> bool:
        return self.finish is None and self.num_computed == len(self.tokens) - 1

    def begin(self, shared: list[int]) -> None:
        """Go on after the tokens of these published pages, as if they had been computed."""
        self.pages = shared
        self.num_published = len(shared)
        self.num_computed = self.num_followed = len(shared) * PAGE_TOKENS
        if self.num_cached is None:
            self.num_cached = self.num_computed

    @property
    def has_begun(self) -> bool:
        """Whether it ever had pages."""
        return bool(self.pages) or self.num_restarts > 0

    def restart(self) -> None:
        """Forget what is computed: the pages are gone."""
        self.num_restarts += 1
        self.num_computed = self.num_followed = self.num_published = 0
        self.drafts.clear()
        self.unfollowed.clear()

    def note_step(self, now_s: float, experts_s: float) -> None:
        """It was in a step that began at now_s and waited so long for experts."""
        if self.begun_s is None:
            self.begun_s = now_s
        self.num_steps += 1
        self.experts_s += experts_s

    @property
    def work(self) -> dict[str, int | float]:
        """What was done for it here, for its client's trace."""
        assert self.begun_s is not None, "a sequence ends with a token in a step"
        return {
            "queue_s": self.begun_s - self.since_s,
            "steps": self.num_steps,
            "experts_s": self.experts_s,
            "restarts": self.num_restarts,
        }

    def draw(self, drafts: list[int]) -> Draw:
        """What the sampler must know for the token after these drafts, should they hold."""
        sampling = self.sampling
        forbidden: tuple[int, ...] = ()
        if self.num_emitted + len(drafts) < sampling.min_tokens:
            forbidden = tuple(sorted({*self.eos_ids, *sampling.stop_token_ids}))
        return Draw(
            sampling=sampling,
            position=len(self.tokens) + len(drafts),
            prompt_ids=self.tokens[: self.num_prompt] if sampling.repetition_penalty != 1.0 else (),
            emitted_ids=self.tokens[self.num_prompt :] + drafts if sampling.is_penalised else (),
            forbidden_ids=forbidden,
            allowed_V=None if self.matcher is None else self.matcher.allowed(drafts),
        )

    def append(self, token_id: int) -> str | None:
        """Take the drawn token; returns why the sequence ends, or None."""
        self.tokens.append(token_id)
        if self.matcher is not None:
            self.matcher.advance(token_id)
        sampling = self.sampling
        if token_id in sampling.stop_token_ids or (token_id in self.eos_ids and not sampling.ignore_eos):
            self.finish = FINISH_STOP
        elif self.num_emitted >= sampling.max_tokens or len(self.tokens) >= self.max_context:
            self.finish = FINISH_LENGTH
        return self.finish
