"""The prefix cache: pages found by the tokens that made them.

A page's key is a hash of the key before it, the page's tokens and the one token after them: the last slot of
the MTP layer depends on that one too. So in every layer a page is a function of its key, and whoever reads it
computes what it would have computed alone (docs/decisions/008-prefix-cache.md). Prompts of different tenants
or salts never meet. Knows nothing of tensors.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from hashlib import blake2b

from actors.pages import PagePool
from actors.sequence import Sequence
from model.cache import PAGE_TOKENS

KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """Published pages of one sequence, from its first token on, and their keys."""

    keys: tuple[bytes, ...]
    pages: list[int]


class PrefixCache:
    """Counts in tokens: asked by sequences that began (again), and of those not computed."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self.asked_tokens = 0
        self.hit_tokens = 0

    def find(self, sequence: Sequence) -> list[int]:
        """The cached pages that the sequence can begin with; its last token is never in one.

        None where its prompt is to be scored: that needs every row of it.
        """
        pages: list[int] = []
        if sequence.scores is not None:
            return pages
        for key in _keys(sequence):
            page = self._pool.find(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def begin(self, sequence: Sequence, pages: list[int]) -> None:
        """The sequence shares the pages that `find` found; the rest of it is to be computed."""
        sequence.begin(self._pool.share(pages, sequence.terms.tenant))
        self.asked_tokens += len(sequence.tokens)
        self.hit_tokens += sequence.num_computed

    def publish(self, sequence: Sequence, num_final: int) -> None:
        """Let others find the full pages of its first num_final tokens, which no step will write again."""
        num_full = num_final // PAGE_TOKENS
        if sequence.num_published >= num_full:
            return
        keys, tenant = _keys(sequence), sequence.terms.tenant
        for place in range(sequence.num_published, min(num_full, len(keys))):
            if place and self._pool.find(keys[place - 1]) != sequence.pages[place - 1]:
                return  # what is before it was withdrawn
            sequence.pages[place] = self._pool.publish(sequence.pages[place], keys[place], tenant)
            sequence.num_published = place + 1

    def lend(self, sequence: Sequence) -> Chain:
        """What others can find of it, with one reader more until it is taken back: nobody writes it."""
        keys = tuple(sequence.page_keys[: sequence.num_published])
        held = [page for key, page in zip(keys, sequence.pages, strict=False) if self._pool.find(key) == page]
        is_whole = len(held) == len(keys)  # else something of it was withdrawn
        return Chain(keys=keys, pages=self._pool.share(held)) if is_whole else Chain(keys=(), pages=[])

    def take_back(self, chain: Chain) -> None:
        self._pool.give_back(chain.pages)

    def withdraw(self, sequence: Sequence) -> None:
        """Something of its past is not to be trusted: nobody shall find any of its pages."""
        self._pool.withdraw(sequence.pages)

    def stats(self) -> dict[str, float]:
        return {
            "prefix_asked_tokens": self.asked_tokens,
            "prefix_hit_tokens": self.hit_tokens,
            "cached_pages": self._pool.num_published,
            "evicted_pages": self._pool.num_evicted,
        }


def _keys(sequence: Sequence) -> list[bytes]:
    """Of its full pages whose next token is known, in order; each is made once."""
    keys, tokens = sequence.page_keys, sequence.tokens
    for place in range(len(keys), (len(tokens) - 1) // PAGE_TOKENS):
        salt = sequence.terms.page_salt.encode()
        parent = keys[-1] if keys else blake2b(salt, digest_size=KEY_BYTES).digest()
        start = place * PAGE_TOKENS
        own = array("q", tokens[start : start + PAGE_TOKENS + 1])
        keys.append(blake2b(parent + own.tobytes(), digest_size=KEY_BYTES).digest())
    return keys
