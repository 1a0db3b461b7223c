"""Shared pages: whoever finds one reads what it would have written, and none is ever in doubt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import Terms
from actors.scheduler import SchedulerLimits
from actors.sequence import Sequence
from model.cache import PAGE_TOKENS
from model.sampling import Sampling
from tests.shop import Shop


def shop_with(num_pages: int, *, chunk_tokens: int = 64, max_sequences: int = 4) -> Shop:
    limits = SchedulerLimits(
        max_sequences=max_sequences,
        chunk_tokens=chunk_tokens,
        max_step_tokens=2 * chunk_tokens + max_sequences,
    )
    return Shop(num_pages, limits, prefix_cache=True)


def hits(shop: Shop, tokens: list[int], salt: str = "") -> int:
    """Tokens that a sequence which runs alone need not compute."""
    sequence = shop.add(tokens, terms=Terms(cache_salt=salt))
    shop.run()
    assert sequence.num_cached is not None
    return sequence.num_cached


PROMPT = st.builds(  # few kinds of pages, so that many begin alike
    lambda pages, tail, last: [page for page in pages for _ in range(PAGE_TOKENS)] + [last] * tail,
    st.lists(st.integers(0, 1), max_size=4),
    st.sampled_from([1, 2, 30, PAGE_TOKENS - 1, PAGE_TOKENS]),
    st.integers(0, 2),
)
TERMS = st.sampled_from([Terms(), Terms(), Terms(cache_salt="other")])
REQUEST = st.tuples(PROMPT, st.sampled_from([1, 2, 5, 70]), TERMS)
EVENTS = st.lists(st.one_of(REQUEST, st.just("step"), st.integers(0, 5)), max_size=25)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 14), st.sampled_from([16, 64, 100, 128]), EVENTS)
def test_whatever_comes_and_goes_pages_hold_what_their_readers_would_have_written(
    num_pages: int, chunk_tokens: int, events: list[object]
):
    shop = shop_with(num_pages, chunk_tokens=chunk_tokens)
    for event in events:
        if isinstance(event, tuple):
            shop.add(*event)
        elif isinstance(event, int):
            if event < len(shop.live):
                shop.cancel(shop.live[event])
        else:
            shop.step()
    shop.run()


def test_full_pages_are_found_but_never_the_one_of_the_last_token():
    prompt = [i % 7 for i in range(3 * PAGE_TOKENS + 10)]
    shop = shop_with(20)
    assert hits(shop, prompt) == 0
    assert hits(shop, prompt) == 3 * PAGE_TOKENS
    assert hits(shop, prompt[:-10]) == 2 * PAGE_TOKENS
    assert hits(shop, prompt[:-9]) == 3 * PAGE_TOKENS
    assert hits(shop, prompt[: 2 * PAGE_TOKENS] + [9] * 90) == PAGE_TOKENS, "the token after a page counts"
    assert hits(shop, [9, *prompt]) == 0


def test_salts_keep_prompts_apart():
    prompt = [1] * 200
    shop = shop_with(30)
    for salt in ("", "a", "b", "\0"):
        assert hits(shop, prompt, salt) == 0
        assert hits(shop, prompt, salt) == 192


def test_tokens_that_were_said_are_found_too():
    shop = shop_with(20)
    first = shop.add([2] * 60, max_tokens=80)
    shop.run()
    assert hits(shop, [*first.tokens, 0, 1, 2]) == 2 * PAGE_TOKENS


def test_two_that_compute_the_same_side_by_side_end_up_with_the_same_pages():
    shop = shop_with(20, chunk_tokens=64)
    both = [shop.add([3] * 150, max_tokens=5) for _ in range(2)]
    shop.step()
    assert both[0].pages[0] == both[1].pages[0]
    shop.run()
    assert [sequence.num_cached for sequence in both] == [0, 0]
    assert shop.pool.num_published == 2


def test_the_least_recently_read_prompt_goes_first_its_end_before_its_beginning():
    shop = shop_with(9)
    old, young = [1] * 200, [2] * 200  # four pages each, three of them full
    hits(shop, old)
    hits(shop, young)
    assert hits(shop, old) == 192  # and so it is the younger one now
    hits(shop, [3] * 200)
    assert shop.prefixes.stats()["evicted_pages"] == 2
    assert hits(shop, [1] * 65) == 64
    shop = shop_with(9)
    hits(shop, old)
    hits(shop, young)
    hits(shop, [3] * 200)
    assert hits(shop, young) == 192
    assert hits(shop, [1] * 100) == 64, "of the old one its beginning is left"


def test_whoever_is_sent_back_finds_its_own_pages_again():
    shop = shop_with(9, max_sequences=2)
    old, young = shop.add([1] * 100, max_tokens=200), shop.add([2] * 260, max_tokens=200)
    while not shop.scheduler.num_preemptions:
        assert shop.live
        shop.step()
    assert (young.num_computed, young.pages, young.num_published) == (0, [], 0)
    assert shop.prefixes.hit_tokens == 0
    num_tokens = len(young.tokens)
    num_full = (num_tokens - 1) // PAGE_TOKENS
    assert shop.scheduler.num_again_tokens == 0
    shop.cancel(old)
    shop.step()
    assert shop.scheduler.num_again_tokens == num_tokens - num_full * PAGE_TOKENS
    assert shop.prefixes.hit_tokens == num_full * PAGE_TOKENS
    shop.run()
    assert young.num_emitted == 200
    assert young.num_cached == 0, "what is told is what the first prefill found"


def test_pages_of_a_withdrawn_sequence_are_found_by_nobody():
    prompt = [1] * 200
    shop = shop_with(30)
    hits(shop, prompt)
    reader, poisoned = shop.add(prompt, max_tokens=80), shop.add(prompt, max_tokens=5)
    shop.step()
    shop.prefixes.withdraw(poisoned)
    shop.cancel(poisoned)
    assert shop.pool.num_published == 0
    assert shop.prefixes.find(Sequence(**FRESH, tokens=prompt)) == []
    shop.run()
    assert reader.num_emitted == 80
    assert shop.pool.num_published == 0, "nor those that its other reader went on to write"
    assert hits(shop, prompt) == 0
    assert hits(shop, prompt) == 192


FRESH = {
    "request_id": "f",
    "owner": None,
    "num_prompt": 1,
    "sampling": Sampling(max_tokens=1),
    "eos_ids": (),
    "max_context": 999,
}


def test_what_is_shared_does_not_count_as_free():
    shop = shop_with(5)
    hits(shop, [1] * 200)
    shared = shop.prefixes.find(Sequence(**FRESH, tokens=[1] * 200))
    assert len(shared) == 3
    assert shop.pool.num_free == 4
    assert shop.pool.can_take(1, beside=shared)
    assert not shop.pool.can_take(2, beside=shared)
    with pytest.raises(AssertionError, match="not published"):
        shop.pool.share(shop.pool.take(1))
