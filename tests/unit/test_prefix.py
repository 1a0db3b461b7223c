"""Shared pages: whoever finds one reads what it would have written, and none is ever in doubt."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import Terms
from actors.pages import PagePool
from actors.prefix import PrefixCache
from actors.scheduler import Scheduler, SchedulerLimits, Work
from actors.sequence import Sequence
from model.cache import PAGE_TOKENS
from model.sampling import Sampling

Written = tuple[str, int]  # what a slot holds: a function of salt and every token up to its own


class Shop:
    """A scheduler with a cache and a model that counts; every step is checked against the promises."""

    def __init__(self, num_pages: int, *, chunk_tokens: int = 64, max_sequences: int = 4) -> None:
        self.pool = PagePool(num_pages)
        self.cache = PrefixCache(self.pool)
        limits = SchedulerLimits(
            max_sequences=max_sequences,
            chunk_tokens=chunk_tokens,
            max_step_tokens=2 * chunk_tokens + max_sequences,
        )
        self.scheduler = Scheduler(self.pool, limits, prefixes=self.cache)
        self.live: list[Sequence] = []
        self.slots: dict[int, dict[int, Written]] = {}
        self.parents: dict[bytes, bytes] = {}
        self.left: list[int] = []  # published pages without a reader, in the order in which they were left

    def add(self, tokens: list[int], max_tokens: int = 1, salt: str = "") -> Sequence:
        most = self.pool.num_pages * PAGE_TOKENS
        sequence = Sequence(
            request_id="r",
            owner=None,
            tokens=tokens[: most - 1],
            num_prompt=len(tokens[: most - 1]),
            sampling=Sampling(max_tokens=max_tokens),
            eos_ids=(),
            max_context=most,
            terms=Terms(cache_salt=salt),
        )
        self.live.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def end(self, sequence: Sequence) -> None:
        self.live.remove(sequence)
        self.scheduler.remove(sequence)

    def step(self) -> None:
        planned = self.scheduler.plan()
        self._watch_evictions()
        for page in self.pool.unclean():
            self.slots[page] = {}
        for work in planned:
            self._compute(work)
        for work in planned:
            sequence = work.sequence
            if sequence.is_decoding or sequence.finish:
                sequence.num_computed = len(sequence.tokens) - 1
            self.cache.publish(sequence, sequence.num_computed)
            self.left = [page for page in self.left if not self.pool._readers[page]]  # somebody came back
            self.parents.update((child, parent) for parent, child in pairwise(sequence.page_keys))
            if sequence.finish:
                self.end(sequence)
        self.check()

    def run(self, most_steps: int = 500) -> None:
        while self.live:
            self.step()
            most_steps -= 1
            assert most_steps, "they do not end"
        assert self.pool.num_free == self.pool.num_pages

    def hits(self, tokens: list[int], salt: str = "") -> int:
        """Tokens that a sequence which runs alone need not compute."""
        sequence = self.add(tokens, salt=salt)
        self.run()
        assert sequence.num_cached is not None
        return sequence.num_cached

    def _compute(self, work: Work) -> None:
        sequence, start = work.sequence, work.sequence.num_computed
        held = [self.slots[page].get(slot) for page in sequence.pages for slot in range(PAGE_TOKENS)]
        reads = [
            (sequence.terms.page_salt, hash(tuple(sequence.tokens[: place + 1])))
            for place in range(start + work.num_tokens)
        ]
        assert held[:start] == reads[:start], "it reads what it would have written"
        for place in range(start, start + work.num_tokens):
            page = sequence.pages[place // PAGE_TOKENS]
            assert self.pool._readers[page] == 1 and page not in self.pool._names, "nobody else reads it"
            self.slots[page][place % PAGE_TOKENS] = reads[place]
        sequence.num_computed += work.num_tokens
        if sequence.num_computed == len(sequence.tokens):
            sequence.append(sum(sequence.tokens) % 3)

    def _watch_evictions(self) -> None:
        """Those that were left first go first, among those that nobody came back to."""
        gone = [page for page in self.left if page not in self.pool._names]
        rest = [page for page in self.left if page not in gone and not self.pool._readers[page]]
        places = {page: place for place, page in enumerate(self.left)}
        assert not gone or not rest or max(places[page] for page in gone) < min(places[page] for page in rest)
        self.left = rest

    def check(self) -> None:
        pool = self.pool
        read = Counter(page for sequence in self.live for page in sequence.pages)
        assert [pool._readers[page] for page in range(pool.num_pages + 1)] == [
            read[page] for page in range(pool.num_pages + 1)
        ]
        everywhere = [*pool._free, *pool._idle, *read]
        assert sorted(everywhere) == list(range(1, pool.num_pages + 1)), "each page in one place"
        assert not set(pool._free) & set(pool._names)
        assert set(pool._idle) <= set(pool._names)
        assert {page: name for name, page in pool._published.items()} == pool._names
        for name in pool._published:
            assert self.parents.get(name) in (None, *pool._published), "children go before parents"
        self.left = [page for page in self.left if page in pool._idle]
        self.left += [page for page in pool._idle if page not in self.left]


PROMPT = st.builds(  # few kinds of pages, so that many begin alike
    lambda pages, tail, last: [page for page in pages for _ in range(PAGE_TOKENS)] + [last] * tail,
    st.lists(st.integers(0, 1), max_size=4),
    st.sampled_from([1, 2, 30, PAGE_TOKENS - 1, PAGE_TOKENS]),
    st.integers(0, 2),
)
REQUEST = st.tuples(PROMPT, st.sampled_from([1, 2, 5, 70]), st.sampled_from(["", "", "other"]))
EVENTS = st.lists(st.one_of(REQUEST, st.just("step"), st.integers(0, 5)), max_size=25)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 14), st.sampled_from([16, 64, 100, 128]), EVENTS)
def test_whatever_comes_and_goes_pages_hold_what_their_readers_would_have_written(
    num_pages: int, chunk_tokens: int, events: list[object]
):
    shop = Shop(num_pages, chunk_tokens=chunk_tokens)
    for event in events:
        if isinstance(event, tuple):
            shop.add(*event)
        elif isinstance(event, int):
            if event < len(shop.live):
                shop.end(shop.live[event])
                shop.check()
        else:
            shop.step()
    shop.run()


def test_full_pages_are_found_but_never_the_one_of_the_last_token():
    prompt = [i % 7 for i in range(3 * PAGE_TOKENS + 10)]
    shop = Shop(20)
    assert shop.hits(prompt) == 0
    assert shop.hits(prompt) == 3 * PAGE_TOKENS
    assert shop.hits(prompt[:-10]) == 2 * PAGE_TOKENS
    assert shop.hits(prompt[:-9]) == 3 * PAGE_TOKENS
    assert shop.hits(prompt[: 2 * PAGE_TOKENS] + [9] * 90) == PAGE_TOKENS, "the token after a page counts"
    assert shop.hits([9, *prompt]) == 0


def test_salts_keep_prompts_apart():
    prompt = [1] * 200
    shop = Shop(30)
    for salt in ("", "a", "b", "\0"):
        assert shop.hits(prompt, salt) == 0
        assert shop.hits(prompt, salt) == 192


def test_tokens_that_were_said_are_found_too():
    shop = Shop(20)
    first = shop.add([2] * 60, max_tokens=80)
    shop.run()
    assert shop.hits([*first.tokens, 0, 1, 2]) == 2 * PAGE_TOKENS


def test_two_that_compute_the_same_side_by_side_end_up_with_the_same_pages():
    shop = Shop(20, chunk_tokens=64)
    both = [shop.add([3] * 150, max_tokens=5) for _ in range(2)]
    shop.step()
    assert both[0].pages[0] == both[1].pages[0]
    shop.run()
    assert [sequence.num_cached for sequence in both] == [0, 0]
    assert shop.pool.num_published == 2


def test_the_least_recently_read_prompt_goes_first_its_end_before_its_beginning():
    shop = Shop(9)
    old, young = [1] * 200, [2] * 200  # four pages each, three of them full
    shop.hits(old)
    shop.hits(young)
    assert shop.hits(old) == 192  # and so it is the younger one now
    shop.hits([3] * 200)
    assert shop.cache.stats()["evicted_pages"] == 2
    assert shop.hits([1] * 65) == 64
    shop = Shop(9)
    shop.hits(old)
    shop.hits(young)
    shop.hits([3] * 200)
    assert shop.hits(young) == 192
    assert shop.hits([1] * 100) == 64, "of the old one its beginning is left"


def test_whoever_is_sent_back_finds_its_own_pages_again():
    shop = Shop(9, max_sequences=2)
    old, young = shop.add([1] * 100, max_tokens=200), shop.add([2] * 260, max_tokens=200)
    while not shop.scheduler.num_preemptions:
        assert shop.live
        shop.step()
    assert (young.num_computed, young.pages, young.num_published) == (0, [], 0)
    assert shop.cache.hit_tokens == 0
    num_full = (len(young.tokens) - 1) // PAGE_TOKENS
    shop.end(old)
    shop.step()
    assert shop.cache.hit_tokens == num_full * PAGE_TOKENS
    shop.run()
    assert young.num_emitted == 200
    assert young.num_cached == 0, "what is told is what the first prefill found"


def test_pages_of_a_withdrawn_sequence_are_found_by_nobody():
    prompt = [1] * 200
    shop = Shop(30)
    shop.hits(prompt)
    reader, poisoned = shop.add(prompt, max_tokens=80), shop.add(prompt, max_tokens=5)
    shop.step()
    shop.cache.withdraw(poisoned)
    shop.end(poisoned)
    assert shop.pool.num_published == 0
    assert shop.cache.find(Sequence(**FRESH, tokens=prompt)) == []
    shop.run()
    assert reader.num_emitted == 80
    assert shop.pool.num_published == 0, "nor those that its other reader went on to write"
    assert shop.hits(prompt) == 0
    assert shop.hits(prompt) == 192


FRESH = {
    "request_id": "f",
    "owner": None,
    "num_prompt": 1,
    "sampling": Sampling(max_tokens=1),
    "eos_ids": (),
    "max_context": 999,
}


def test_what_is_shared_does_not_count_as_free():
    shop = Shop(5)
    shop.hits([1] * 200)
    shared = shop.cache.find(Sequence(**FRESH, tokens=[1] * 200))
    assert len(shared) == 3
    assert shop.pool.num_free == 4
    assert shop.pool.can_take(1, beside=shared)
    assert not shop.pool.can_take(2, beside=shared)
    with pytest.raises(AssertionError, match="not published"):
        shop.pool.share(shop.pool.take(1))
