"""Who waits for whom: tenants alike, batch a tenth, short prompts not behind long ones."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import FINISH_OVER_SHARE, FINISH_OVERLOADED, Terms
from actors.queue import WEIGHTS
from actors.scheduler import SchedulerLimits
from actors.sequence import Sequence
from actors.shares import Shares
from model.cache import PAGE_TOKENS
from tests.shop import Shop

LIMITS = SchedulerLimits(max_sequences=8, chunk_tokens=64, max_step_tokens=80)
A, B = Terms(tenant="a"), Terms(tenant="b")


def backlogged(
    shop: Shop, terms: Terms, prompt: int, answer: int, depth: int = LIMITS.max_sequences + 1
) -> None:
    """Keep `depth` sequences of these terms waiting: by default more than one step can take."""
    waiting = [sequence for sequence in shop.scheduler.waiting if sequence.terms == terms]
    for _ in range(depth - len(waiting)):
        shop.add(prompt, answer, terms)


# Tenants


@settings(max_examples=12, deadline=None)
@given(st.tuples(st.integers(1, 300), st.integers(1, 40)), st.tuples(st.integers(1, 300), st.integers(1, 40)))
def test_two_tenants_that_always_wait_are_given_the_same_to_within_what_is_under_way(of_a, of_b):
    """Bound: what a full step of sequences under way may still be given, on both sides."""
    shop = Shop(80, LIMITS)
    bound = LIMITS.max_sequences * (max(of_a[0], of_b[0]) + max(of_a[1], of_b[1])) + LIMITS.chunk_tokens
    for _ in range(80):
        backlogged(shop, A, *of_a)
        backlogged(shop, B, *of_b)
        shop.step()
        assert abs(shop.computed["a"] - shop.computed["b"]) <= bound


@settings(max_examples=12, deadline=None)
@given(st.integers(64, 300), st.integers(64, 300), st.integers(0, 40))
def test_prompts_alone_are_shared_to_within_two_chunks_whoever_came_first(of_a, of_b, head_start):
    shop = Shop(80, LIMITS)
    for _ in range(head_start):
        backlogged(shop, A, of_a, 1)
        shop.step()
    before = shop.computed["a"]
    for _ in range(60):
        backlogged(shop, A, of_a, 1)
        backlogged(shop, B, of_b, 1)
        shop.step()
        assert abs(shop.computed["a"] - before - shop.computed["b"]) <= 2 * LIMITS.chunk_tokens


def test_a_tenant_that_floods_does_not_hold_up_another():
    shop = Shop(200, LIMITS)
    for _ in range(100):
        shop.add(300, 1, A)
    for _ in range(5):
        shop.step()
    guest = shop.add(60, 1, B)
    shop.step()
    shop.step()
    assert guest not in shop.live


def test_idle_time_earns_nothing_and_an_idle_machine_leaves_no_debt():
    shares: Shares[str] = Shares()
    shares.charge("a", 100.0)  # nobody waits: free
    shares.join("a")
    shares.charge("a", 10.0)
    shares.join("b")
    assert shares.in_turn() == ["a", "b"]  # level, not ten ahead
    shares.charge("a", 1.0)
    assert shares.in_turn() == ["b", "a"]
    shares.leave("a")
    shares.join("a")  # leaving for a moment clears no debt
    assert shares.in_turn() == ["b", "a"]


def test_tenants_that_are_gone_leave_nothing_behind():
    shares: Shares[int] = Shares()
    shares.join(-1)
    for flow in range(1000):
        shares.join(flow)
        shares.charge(flow, 1.0)
        shares.charge(-1, 1.0)
        shares.leave(flow)
    assert len(shares._spent) <= 2


# Classes


@settings(max_examples=6, deadline=None)
@given(st.integers(64, 300), st.integers(64, 300))
def test_batch_has_a_tenth_while_both_classes_wait_and_all_else(of_interactive, of_batch):
    shop = Shop(80, LIMITS)
    batch = Terms(tenant="b", is_batch=True)
    for _ in range(120):
        backlogged(shop, A, of_interactive, 1)
        backlogged(shop, batch, of_batch, 1)
        shop.step()
    total = shop.computed["a"] + shop.computed["b"]
    share = WEIGHTS[True] / sum(WEIGHTS.values())
    assert abs(shop.computed["b"] - share * total) <= 2 * LIMITS.chunk_tokens
    while any(sequence.terms == A for sequence in shop.live):
        shop.step()
    before = shop.computed["b"]
    for _ in range(20):
        backlogged(shop, batch, of_batch, 1)
        shop.step()
    assert shop.computed["b"] - before >= 20 * min(of_batch, LIMITS.chunk_tokens) / 2


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 500), st.integers(1, 60), st.integers(3, 12))
def test_batch_ends_although_interactive_sequences_never_stop_coming(prompt, answer, num_pages):
    """However few the pages: it gives way once, then it is as good as any of its age."""
    shop = Shop(num_pages, LIMITS)
    batch = shop.add(prompt, answer, Terms(tenant="b", is_batch=True))
    for _ in range(3000):
        if batch not in shop.live:
            return
        backlogged(shop, A, 100, 30, depth=2)
        shop.step()
    pytest.fail(f"still {batch.num_emitted} of {answer} tokens, sent back {batch.num_restarts} times")


# Within a tenant


def first_token_after(shop: Shop, sequence: Sequence) -> int:
    for steps in count(1):
        shop.step()
        if sequence.num_emitted:
            return steps
    raise AssertionError


@pytest.mark.parametrize("num_long", [1, 5])
def test_a_short_prompt_waits_for_a_chunk_or_two_of_longer_ones(num_long):
    shop = Shop(600, SchedulerLimits(max_sequences=16, chunk_tokens=64, max_step_tokens=79))
    shop.add(1, 1000)  # somebody decodes
    for _ in range(num_long):
        shop.add(3000, 1)
    for _ in range(3):
        shop.step()
    assert first_token_after(shop, shop.add(40, 50)) <= 2


def test_a_long_prompt_has_every_second_chunk_at_least_while_short_ones_keep_coming():
    shop = Shop(600, LIMITS)
    shop.add(1, 10_000)
    long = shop.add(64 * 20, 1)
    for _ in range(2 * 20 + 1):
        backlogged(shop, Terms(), 64, 1, depth=4)
        shop.step()
    assert long not in shop.live


# Admission


def test_one_tenant_cannot_fill_the_queue_and_is_told_that_it_is_its_own_doing():
    shop = Shop(200, SchedulerLimits(max_sequences=1, chunk_tokens=64, max_queue=40))
    shop.add(1, 1000)
    shop.step()
    taken = 0
    shop.add(100, 1, B)
    while (refusal := shop.scheduler.refusal(A)) is None:
        shop.add(100, 1, A)
        taken += 1
    assert taken == 20
    assert refusal.finish == FINISH_OVER_SHARE
    assert shop.scheduler.refusal(B) is None
    assert shop.scheduler.refusal(Terms(tenant="c")) is None
    assert shop.scheduler.refusal(Terms(tenant="a", is_promised=True)) is None


def test_a_full_queue_is_bounded_and_nobodys_fault():
    shop = Shop(200, SchedulerLimits(max_sequences=1, chunk_tokens=64, max_queue=10))
    tenants = (Terms(tenant=str(number)) for number in count())
    while (refusal := shop.scheduler.refusal(terms := next(tenants))) is None:
        shop.add(100, 1, terms)
    assert len(shop.live) == 10
    assert refusal.finish == FINISH_OVERLOADED


@settings(max_examples=8, deadline=None)
@given(st.integers(20, 400), st.integers(1, 30), st.integers(1, 8))
def test_the_estimated_wait_of_a_queue_that_drains_steadily_is_what_comes_true(prompt, answer, slots):
    limits = SchedulerLimits(max_sequences=slots, chunk_tokens=64, max_step_tokens=64 + slots)
    shop = Shop(400, limits)
    for _ in range(40):
        shop.add(prompt, answer)
    while len(shop.scheduler.waiting) > 20:
        shop.step()
    estimate_s, since_s = shop.scheduler.wait_s(), shop.now_s
    while shop.scheduler.waiting:
        shop.step()
    assert 0.5 * estimate_s <= shop.now_s - since_s <= 2.0 * estimate_s


def test_whoever_waits_longer_than_it_may_is_told_when_to_come_back():
    shop = Shop(200, SchedulerLimits(max_sequences=1, chunk_tokens=64))
    shop.add(64, 500)
    shop.step()
    patient = shop.add(64, 1)
    promised = shop.add(64, 1, Terms(max_wait_s=1.0, is_promised=True))
    hasty = shop.add(64, 1, Terms(max_wait_s=1.0))
    assert shop.scheduler.overdue(shop.now_s) == []
    while not (late := shop.scheduler.overdue(shop.now_s)):
        shop.step()
    assert 1.0 < shop.now_s - hasty.since_s < 1.1
    [(sequence, refusal)] = late
    assert sequence is hasty
    assert refusal.retry_after_s > 0
    shop.cancel(hasty)
    shop.run()
    assert {patient.request_id, promised.request_id} <= shop.finished.keys()


def test_a_wait_over_what_the_client_grants_is_refused_at_the_door():
    shop = Shop(200, SchedulerLimits(max_sequences=1, chunk_tokens=64))
    for _ in range(20):
        shop.add(64, 20)
    for _ in range(50):
        shop.step()
    estimate_s = shop.scheduler.wait_s()
    assert estimate_s > 1.0
    assert shop.scheduler.refusal(Terms(max_wait_s=estimate_s * 1.1)) is None
    refusal = shop.scheduler.refusal(Terms(max_wait_s=estimate_s * 0.9))
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(estimate_s)
    assert shop.scheduler.refusal(Terms(tenant="new", max_wait_s=0.1)) is None, "it has nothing waiting"


# What the estimate must not count


def test_time_in_which_nobody_waits_is_not_charged_to_whoever_left() -> None:
    shop, terms = Shop(600, SchedulerLimits()), Terms(max_wait_s=60.0)
    gone = shop.add(4000, 10, terms)
    shop.step()
    assert shop.scheduler.waiting == [] and shop.live == [gone]
    shop.cancel(gone)
    shop.now_s += 600
    shop.add(4000, 10, terms)
    shop.step()
    assert shop.scheduler.refusal(terms) is None


def test_tokens_that_the_cache_holds_are_not_ahead_of_anybody() -> None:
    shop, terms = Shop(600, SchedulerLimits(), prefix_cache=True), Terms(max_wait_s=60.0)
    first = shop.add(4000, 1, terms)
    shop.run()
    assert first.finish is not None
    for _ in range(20):
        shop.add(4000, 1, terms)
    assert shop.scheduler._queue.tokens_left < 20 * 2 * PAGE_TOKENS


def test_choices_that_come_together_are_let_in_together_or_not_at_all() -> None:
    limits = SchedulerLimits(max_queue=10)
    shop = Shop(600, limits)
    assert shop.scheduler.refusal(Terms(num_together=64)) is None  # into an empty queue: else never
    shop.add(100, 1)
    assert shop.scheduler.refusal(Terms(num_together=9)) is not None
    assert shop.scheduler.refusal(Terms(num_together=5)) is None


def test_batch_is_not_sent_back_for_pages_that_the_newcomer_shares() -> None:
    limits = SchedulerLimits(max_sequences=4, chunk_tokens=64, max_step_tokens=80)
    shop, batch = Shop(12, limits, prefix_cache=True), Terms(is_batch=True)
    shop.add(5 * PAGE_TOKENS, 1)
    shop.run()
    running = shop.add(5 * PAGE_TOKENS, 100, batch)
    while not running.is_decoding:
        shop.step()
    newcomer = shop.add(5 * PAGE_TOKENS, 1)
    shop.step()
    assert newcomer.finish is not None or newcomer.pages
    assert running.num_restarts == 0
