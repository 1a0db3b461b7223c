"""No page has two owners and none is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.pages import PagePool, pages_for
from model.batch import NULL_PAGE
from model.cache import PAGE_TOKENS


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 20), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), max_size=40))
def test_pages_are_owned_once_and_all_come_back(num_pages: int, walk: list[tuple[int, int]]):
    pool = PagePool(num_pages)
    owners: list[list[int]] = [[], [], [], []]
    for owner, count in walk:
        if owners[owner]:
            pool.give_back(owners[owner])
            assert owners[owner] == []
        elif pool.can_take(count):
            owners[owner] = pool.take(count)
        else:
            assert count > pool.num_free
        owned = [page for pages in owners for page in pages]
        assert len(set(owned)) == len(owned)
        assert len(owned) + pool.num_free == pool.num_pages == num_pages - 1
        assert all(0 <= page < num_pages and page != NULL_PAGE for page in owned)
    for pages in owners:
        pool.give_back(pages)
    assert sorted(pool.take(pool.num_free)) == list(range(1, num_pages))


def test_what_was_taken_is_unclean_once():
    pool = PagePool(6)
    first = pool.take(2)
    second = pool.take(1)
    assert pool.unclean() == first + second
    assert pool.unclean() == []
    pool.give_back(first)
    again = pool.take(1)
    assert pool.unclean() == again


@pytest.mark.parametrize("num_pages", [-1, 0, 1])
def test_a_pool_needs_a_page_beside_the_null_page(num_pages: int):
    with pytest.raises(ValueError, match="at least 2"):
        PagePool(num_pages)


def test_taking_more_than_is_free_is_our_fault():
    with pytest.raises(AssertionError, match="3 pages wanted, 2 free"):
        PagePool(3).take(3)


def test_pages_hold_their_tokens_exactly():
    for num_tokens in range(400):
        pages = pages_for(num_tokens)
        assert (pages - 1) * PAGE_TOKENS < num_tokens <= pages * PAGE_TOKENS or num_tokens == pages == 0


def test_72_a_tenant_that_floods_the_cache_evicts_its_own_pages():
    pool = PagePool(9)

    def leave(tenant: str, count: int) -> list[bytes]:
        pages = pool.take(count)
        names = [f"{tenant} {page} {pool.num_evicted}".encode() for page in pages]
        for page, name in zip(pages, names, strict=True):
            pool.publish(page, name, tenant)
        pool.give_back(pages)
        return names

    quiet = leave("quiet", 3)
    flood = [name for _ in range(20) for name in leave("flood", 2)]
    assert all(pool.find(name) is not None for name in quiet)
    assert sum(pool.find(name) is not None for name in flood) == 5
    alone = leave("quiet", 8)
    assert pool.num_free == 8 and all(pool.find(name) is not None for name in alone), (
        "nothing is kept from use"
    )


def test_72_pages_that_came_from_elsewhere_count_for_who_reads_them_first():
    pool = PagePool(5)
    moved = [pool.adopt(name) for name in (b"0", b"1")]
    read = pool.share(moved, "flood")
    pool.give_back(moved)
    pool.give_back(read)
    [own] = pool.take(1)
    pool.publish(own, b"quiet", "quiet")
    pool.give_back([own])
    pool.take(2)  # one is free
    assert pool.find(b"quiet") == own and pool.find(b"0") is not None and pool.find(b"1") is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.booleans()), max_size=40))
def test_72_whoever_has_fewer_idle_pages_than_another_loses_none(walk: list[tuple[str, int, bool]]):
    pool, names = PagePool(12), dict.fromkeys("abc", 0)
    kept: dict[str, list[bytes]] = {tenant: [] for tenant in "abc"}

    def held(tenant: str) -> int:
        return sum(pool.find(name) is not None for name in kept[tenant])

    for tenant, count, is_named in walk:
        before = {one: held(one) for one in "abc"}
        evicted = pool.num_evicted
        pages = pool.take(count)
        for one in "abc":
            lost = before[one] - held(one)
            assert lost == 0 or before[one] - lost >= max(held(other) for other in "abc") - 1
        assert sum(before.values()) - sum(map(held, "abc")) == pool.num_evicted - evicted
        for page in pages if is_named else ():
            names[tenant] += 1
            kept[tenant].append(f"{tenant}{names[tenant]}".encode())
            pool.publish(page, kept[tenant][-1], tenant)
        pool.give_back(pages)
