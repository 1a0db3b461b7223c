"""Whether a token of the engine on a GPU depends on anything but its request.

Each check serves the same requests in another way and compares tokens, bits of log probabilities and ends
with those of every request alone. Knows nothing of speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random

import torch

from actors.engine import Engine
from actors.fp8_runner import Fp8Parts
from actors.scheduler import SchedulerLimits
from actors.sequence import Sequence as LiveSequence
from model.cache import PAGE_TOKENS
from model.fp8_cache import Fp8Cache
from model.sampling import Sampling

LENGTHS = (1, 5, 63, 64, 65, 130, 300, 511, 700, 60, 58, 55, 17, 2300)  # the last chooses among its keys
TOKENS = 12
GREEDY = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True, logprobs=0)
SAMPLED = Sampling(max_tokens=TOKENS, temperature=0.8, top_p=0.95, seed=7, ignore_eos=True, logprobs=0)

PENALISED = replace(SAMPLED, frequency_penalty=0.5)  # drawn on the host


@dataclass(frozen=True, slots=True)
class Said:
    """One request's answer."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: str | None = None


def make_engine(
    parts: Fp8Parts,
    limits: SchedulerLimits,
    *,
    draft_tokens: int = 0,
    num_pages: int | None = None,
    prefix_cache: bool = False,
) -> Engine:
    runner = parts.runner(draft_tokens=draft_tokens, num_pages=num_pages)
    context = parts.buffers.tables.pages_SP.shape[1] * PAGE_TOKENS
    return Engine(runner, context_tokens=context, limits=limits, prefix_cache=prefix_cache)


def serve(engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]) -> list[Said]:
    """All at once, to their ends."""
    for i, (prompt, own) in enumerate(zip(prompts, sampling, strict=True)):
        refused = engine.submit("bench", str(i), prompt, [], own)
        assert refused is None, refused
    said = [Said() for _ in prompts]
    while engine.has_work:
        for event in [event for events in engine.step().values() for event in events]:
            place = int(event.request_id)
            had = said[place]
            said[place] = Said(
                had.token_ids + event.token_ids, had.logprobs + event.logprobs, event.finish or had.finish
            )
    return said


class Checks:
    """limits: the largest steps that the parts are for."""

    def __init__(self, parts: Fp8Parts, limits: SchedulerLimits, *, lengths: Sequence[int] = LENGTHS) -> None:
        self._parts, self._limits = parts, limits
        rng = Random(1)
        vocab = parts.config.vocab_size
        self._prompts = [[rng.randrange(2, vocab) for _ in range(count)] for count in lengths]
        self._sampling = [(GREEDY, SAMPLED, GREEDY, PENALISED)[i % 4] for i in range(len(lengths))]
        self._alone: list[Said] = []

    def all(self) -> dict[str, Callable[[], str]]:
        """By name, in the order in which they must run; each returns what it saw or raises."""
        checks = {
            "alone": self.alone,
            "together": self.together,
            "smaller chunks": self.smaller_chunks,
            "prefix hits": self.prefix_hits,
            "preemption": self.preemption,
            "what others left": self.leftovers,
        }
        if self._parts.config.num_mtp_layers:
            checks |= {"drafts": self.drafts, "right and wrong drafts": self.guesses}
        return checks

    def alone(self) -> str:
        engine = self._engine()
        self._alone = [
            serve(engine, [prompt], [own])[0]
            for prompt, own in zip(self._prompts, self._sampling, strict=True)
        ]
        assert all(len(one.token_ids) == TOKENS for one in self._alone), self._alone
        different = len({token for one in self._alone for token in one.token_ids})
        return f"{len(self._alone)} requests, {different} different tokens"

    def together(self) -> str:
        engine = self._engine()
        self._same(engine)
        return f"{engine.counters.steps} steps"

    def smaller_chunks(self) -> str:
        seen = []
        for chunk in (64, 96, 320):  # the last goes another way
            if chunk > self._limits.chunk_tokens:
                continue
            engine = self._engine(limits=replace(self._limits, chunk_tokens=chunk))
            self._same(engine)
            seen.append(f"{engine.counters.steps} steps of chunks of {chunk}")
        return ", ".join(seen)

    def prefix_hits(self) -> str:
        engine = self._engine(prefix_cache=True)
        self._same(engine)
        self._same(engine)
        hits = int(engine.stats()["prefix_hit_tokens"])
        assert hits > 0, "no prefix was found"
        return f"{hits} tokens found"

    def preemption(self) -> str:
        """Requests of a page each, in as many pages, that all need another one."""
        engine = self._engine(num_pages=1 + 3)
        self._same(engine, [place for place, one in enumerate(self._prompts) if 50 < len(one) < 64])
        preemptions = int(engine.stats()["preemptions"])
        assert preemptions > 0, "pages sufficed"
        return f"{preemptions} sent back"

    def leftovers(self) -> str:
        """NaN in every slot but those that nobody owns."""
        poison(self._parts.cache)
        self._same(self._engine())
        return "every page was NaN before"

    def drafts(self) -> str:
        engine = self._engine(draft_tokens=1)
        self._same(engine)
        return f"{sum(engine.counters.accepted)} of {sum(engine.counters.drafted)} held"

    def guesses(self) -> str:
        engine = self._engine(draft_tokens=1)
        with guessing(engine, self._alone, share=0.7):
            self._same(engine)
        accepted, drafted = sum(engine.counters.accepted), sum(engine.counters.drafted)
        assert 0 < accepted < drafted, (accepted, drafted)
        return f"{accepted} of {drafted} held"

    def _engine(
        self,
        *,
        limits: SchedulerLimits | None = None,
        draft_tokens: int = 0,
        num_pages: int | None = None,
        prefix_cache: bool = False,
    ) -> Engine:
        return make_engine(
            self._parts,
            limits or self._limits,
            draft_tokens=draft_tokens,
            num_pages=num_pages,
            prefix_cache=prefix_cache,
        )

    def _same(self, engine: Engine, places: Sequence[int] = ()) -> None:
        """Of these requests, or of all."""
        chosen = places or range(len(self._prompts))
        said = serve(engine, [self._prompts[i] for i in chosen], [self._sampling[i] for i in chosen])
        for i, got in zip(chosen, said, strict=True):
            wanted, length = self._alone[i], len(self._prompts[i])
            assert got == wanted, f"request {i} ({length} tokens): {got} is not {wanted}"


def poison(cache: Fp8Cache) -> None:
    for latent, key in zip(cache.latents, cache.keys, strict=True):
        for plane in (latent.latent_SC, key.key_SI):
            plane.view(torch.uint8)[PAGE_TOKENS:] = 0x7F  # E4M3's NaN
        for wide in (latent.scale_SG, latent.rotary_SR, key.scale_S):
            wide[PAGE_TOKENS:] = torch.nan


@contextmanager
def guessing(engine: Engine, coming: Sequence[Said], *, share: float) -> Iterator[None]:
    """Drafts are the very tokens that come, or for the rest of them not."""
    drafter = engine._runner.drafter  # type: ignore[attr-defined]
    follow, rng = drafter.follow, Random(4)

    def guess(advanced: Sequence[tuple[LiveSequence, torch.Tensor]]) -> None:
        follow(advanced)
        for sequence, _ in advanced:
            ids = coming[int(sequence.request_id)].token_ids[sequence.num_emitted :]
            for place in range(len(sequence.drafts)):
                if place < len(ids) and rng.random() < share:
                    sequence.drafts[place] = ids[place]

    drafter.follow = guess
    yield
    drafter.follow = follow
