"""Where one sequence stands in its grammar.

Says which tokens may come next, also after drafts, and takes those that came. All of it can be made again
from the grammar and the emitted tokens. Knows nothing of logits and of the other sequences.

Letters: V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:  # an engine that meets no grammar, as benchmarks on a GPU run, does without the library
    from llguidance import LLMatcher

# What the masks of a sequence may take of the processor: the library's own limits hold each of them to a
# fraction of a second only, and all sequences of an actor share a thread.
FIRST_S = 1.0
TOKEN_S = 0.01
REPLAY_TOKENS = 64  # taken at once: the library keeps the GIL meanwhile


class Matcher:
    """begun: the compiled grammar before any token, which is only copied. after_id: the token that the
    grammar begins after (the end of reasoning), None: it begins at once. vocab_size: of the logits. clock:
    of what this thread has computed, in seconds.
    """

    def __init__(
        self,
        begun: LLMatcher,
        *,
        end_ids: Sequence[int],
        vocab_size: int,
        after_id: int | None = None,
        emitted_ids: Iterable[int] = (),
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._begun = begun
        self._matcher = begun.deep_copy()
        self._end_ids = frozenset(end_ids)
        self._after_id = after_id
        self._vocab_size = vocab_size
        self._is_waiting = after_id is not None
        self._taken: list[int] = []  # by the grammar
        self._known: dict[tuple[int, ...], Tensor | None] = {}  # by drafts, until the next token
        self._any_V: Tensor | None = None
        self._is_stuck = False
        self._clock = clock
        self._left_s = FIRST_S
        self._replay(emitted_ids)

    @property
    def error(self) -> str | None:
        """Why nothing may come next, where that is so."""
        if self._left_s < 0.0:
            return "its masks take too long to compute"
        return self._matcher.get_error() or ("no token fits" if self._is_stuck else None)

    def advance(self, token_id: int) -> None:
        """The token that came; one that may not leaves an error."""
        self._known.clear()
        self._left_s += TOKEN_S
        if self._is_waiting:
            self._is_waiting = token_id != self._after_id
        elif token_id not in self._end_ids:
            self._taken.append(token_id)
            self._matcher.consume_token(token_id)

    def allowed(self, drafts: Sequence[int] = ()) -> Tensor | None:
        """[V] bool: which tokens may follow these drafts; all false where the grammar costs too much.

        None: any, because one of the drafts may not come itself and so nobody will ask.
        """
        key = tuple(drafts)
        if key not in self._known:
            self._known[key] = self._allowed(key)
        return self._known[key]

    def _allowed(self, drafts: tuple[int, ...]) -> Tensor | None:
        is_guess = bool(drafts)
        if self._is_waiting:
            if self._after_id not in drafts:
                return self._any_but_the_end()
            drafts = drafts[drafts.index(self._after_id) + 1 :]
        if not self._end_ids.isdisjoint(drafts) or (is_guess and self.error is not None):
            return None
        count = self._matcher.try_consume_tokens(list(drafts)) if drafts else 0
        mask_V = self._mask() if count == len(drafts) else None
        if is_guess and (self._matcher.is_error() or not self._matcher.rollback(count)):
            self._matcher = self._begun.deep_copy()
            self._matcher.consume_tokens(self._taken)
        self._is_stuck = not is_guess and mask_V is not None and not bool(mask_V.any())
        return mask_V

    def _mask(self) -> Tensor:
        start_s = self._clock()
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._left_s -= self._clock() - start_s
        if self._left_s < 0.0 or self._matcher.is_error() or not packed.any():
            return torch.zeros(self._vocab_size, dtype=torch.bool)
        bits = np.unpackbits(packed, count=self._vocab_size, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_))

    def _any_but_the_end(self) -> Tensor:
        """While the grammar has not begun, the text cannot end."""
        if self._any_V is None:
            self._any_V = torch.ones(self._vocab_size, dtype=torch.bool)
            self._any_V[list(self._end_ids)] = False
        return self._any_V

    def _replay(self, emitted_ids: Iterable[int]) -> None:
        ids = list(emitted_ids)
        if self._after_id is not None:
            self._is_waiting = self._after_id not in ids
            ids = [] if self._is_waiting else ids[ids.index(self._after_id) + 1 :]
        self._taken = ids
        for place in range(0, len(ids), REPLAY_TOKENS):
            self._matcher.consume_tokens(ids[place : place + REPLAY_TOKENS])
