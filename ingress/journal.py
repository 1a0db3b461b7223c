"""What one sequence has said so far.

The ingress can lose every attention actor and still know it all: prompt, sampling, emitted tokens. From
here a sequence is resumed elsewhere, and here each event is checked: no gap, no duplicate, one end. Knows
no sockets.

Errors: JournalError.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence

from actors.messages import ANY_TERMS, PROOF_TOKENS, Sampling, Submit, Terms, TokenEvent

MAX_DEATHS = 2  # of actors in a row that computed a sequence, the later ones on its trial
MAX_DEATHS_SPOKEN = 3  # of one that has said something: it is likelier that somebody kills


class JournalError(Exception):
    """An attention actor broke the rules of a sequence: its events cannot be trusted further."""


class Journal:
    """The events of one sequence, over as many attention actors as it takes."""

    def __init__(
        self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling, terms: Terms = ANY_TERMS
    ) -> None:
        self.request_id = request_id
        self.prompt_ids = tuple(prompt_ids)
        self.sampling = sampling
        self.terms = terms
        self.emitted: list[int] = []
        self.logprobs: list[float] = []
        self.finish: str | None = None
        self.attempt = 0
        self.num_deaths = 0  # of actors while it was computed there, or may have been, and no proof since
        self._was_taken = False
        self._is_computed = False  # as far as the actor of this attempt has said
        self._proved_at = 0
        self.moved_to: str | None = None  # the actor that has its pages now, until it is resumed
        self._num_cached: int | None = None  # as found where it began, if it has moved before its first token

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All known so far."""
        return (*self.prompt_ids, *self.emitted)

    @property
    def wire_id(self) -> str:
        """The sequence's name in this attempt: events of an earlier one can never be taken for this one's."""
        return self.request_id if self.attempt <= 1 else f"{self.request_id}~{self.attempt - 1}"

    def resume(self) -> tuple[Submit, bytes]:
        """What makes an attention actor go on after the last known token; a new attempt.

        It may be refused until an actor has taken it; one that lost its actor is never.
        """
        assert self.finish is None, f"{self.request_id} has ended ({self.finish}): nothing to resume"
        self.attempt += 1
        self._is_computed = False
        self.moved_to = None
        ids = self.token_ids
        terms = dataclasses.replace(
            self.terms,
            is_promised=self.terms.is_promised or self._was_taken,
            is_suspect=self.num_deaths > 0,
        )
        submit = Submit(
            request_id=self.wire_id,
            num_prompt=len(self.prompt_ids),
            num_emitted=len(self.emitted),
            sampling=dataclasses.asdict(self._sampling()),
            terms=dataclasses.asdict(terms),
        )
        return submit, struct.pack(f"<{len(ids)}i", *ids)

    def _sampling(self) -> Sampling:
        """What the prompt scores came with the first token: it is not computed again for them."""
        return dataclasses.replace(self.sampling, of_prompt=False) if self.emitted else self.sampling

    def accept(self, event: TokenEvent) -> TokenEvent | None:
        """The part of `event` that is news, or None. Raises JournalError, and then has noted no token."""
        self._was_taken = self._is_computed = True  # by whoever speaks of it
        known = len(self.emitted) - event.first
        if event.moved_to is not None and not known:
            self._move(event)
            return None
        if known >= len(event.token_ids) and event.finish is None:
            return None  # a duplicate, however late
        self._check(event, known)
        fresh = dataclasses.replace(
            event,
            request_id=self.request_id,
            first=len(self.emitted),
            token_ids=event.token_ids[known:],
            logprobs=event.logprobs[known:],
            top=event.top[known:],
            num_cached=self._first_found(event) if not known else None,
            prompt_logprobs=event.prompt_logprobs if not known else (),
            prompt_top=event.prompt_top if not known else (),
        )
        self.emitted.extend(fresh.token_ids)
        if len(self.emitted) >= self._proved_at:
            self.num_deaths = 0
        self.logprobs.extend(fresh.logprobs)
        self.finish = event.finish
        return fresh

    def note_death(self) -> None:
        """The actor of this attempt has ended: it counts if this sequence may be why."""
        if self._is_computed:
            self.num_deaths += 1
            self._proved_at = len(self.emitted) + PROOF_TOKENS

    @property
    def is_fatal(self) -> bool:
        """Whether it is taken for what ends the actors that compute it."""
        return self.num_deaths >= (MAX_DEATHS_SPOKEN if self.emitted else MAX_DEATHS)

    def _move(self, event: TokenEvent) -> None:
        self.moved_to = event.moved_to
        if not self.emitted and self._num_cached is None:
            self._num_cached = event.num_cached

    def _first_found(self, event: TokenEvent) -> int | None:
        """What it found where it began: what it finds where it has moved is what it took there itself."""
        is_first = event.num_cached is not None
        return self._num_cached if is_first and self._num_cached is not None else event.num_cached

    def _check(self, event: TokenEvent, known: int) -> None:
        if self.finish is not None:
            raise JournalError(f"{self.request_id}: an event after the end ({self.finish})")
        if event.first < 0 or known < 0:
            raise JournalError(
                f"{self.request_id}: tokens from {event.first} on, but {len(self.emitted)} are known: a gap"
            )
        if known > len(event.token_ids):
            raise JournalError(f"{self.request_id}: ends at {event.first}, but {len(self.emitted)} are known")
        if event.first + len(event.token_ids) > self.sampling.max_tokens:
            raise JournalError(f"{self.request_id}: over max_tokens {self.sampling.max_tokens}")
        if self.sampling.logprobs is not None and len(event.logprobs) != len(event.token_ids):
            raise JournalError(
                f"{self.request_id}: {len(event.token_ids)} tokens with {len(event.logprobs)} logprobs"
            )
        is_first = event.first == 0 and bool(event.token_ids)
        if self.sampling.of_prompt and is_first and len(event.prompt_logprobs) != len(self.prompt_ids) - 1:
            raise JournalError(
                f"{self.request_id}: {len(self.prompt_ids)} prompt tokens with {len(event.prompt_logprobs)} "
                "logprobs"
            )
