"""Who runs next: everybody in the end, decoding ones in every step, and no page is ever in doubt."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import Terms
from actors.pages import PagePool
from actors.scheduler import Scheduler, SchedulerLimits, Work
from tests.shop import Shop

LIMITS = st.builds(
    lambda sequences, chunk, spare: SchedulerLimits(
        max_sequences=sequences, chunk_tokens=chunk, max_step_tokens=sequences - 1 + chunk + spare
    ),
    st.integers(1, 6),
    st.sampled_from([1, 7, 16, 64, 100]),
    st.integers(0, 150),
)
TERMS = st.builds(Terms, tenant=st.sampled_from("abc"), is_batch=st.booleans())
REQUEST = st.tuples(st.integers(1, 400), st.integers(1, 80), TERMS)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), LIMITS, st.lists(REQUEST, min_size=1, max_size=8))
def test_every_sequence_finishes_however_small_the_pool(num_pages, limits, requests):
    shop = Shop(num_pages, limits)
    sequences = [shop.add(*request) for request in requests]
    shop.run()
    assert len(shop.finished) == len(requests)
    for sequence, (_, max_tokens, _) in zip(sequences, requests, strict=True):
        assert sequence.num_emitted == min(max_tokens, shop.max_context - sequence.num_prompt)


EVENTS = st.lists(
    st.one_of(REQUEST, st.integers(0, 5).map(lambda steps: ("step", steps)), st.integers(0, 20)), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), LIMITS, EVENTS)
def test_arrivals_and_cancellations_at_any_moment_leak_nothing_and_starve_nobody(num_pages, limits, events):
    shop = Shop(num_pages, limits)
    for event in events:
        if isinstance(event, int):
            if event < len(shop.live):
                shop.cancel(shop.live[event])
        elif event[0] == "step":
            for _ in range(event[1]):
                shop.step()
        else:
            shop.add(*event)
    shop.run()


def test_a_stream_of_short_prompts_cannot_hold_up_a_long_one():
    limits = SchedulerLimits(max_sequences=4, chunk_tokens=64, max_step_tokens=67)
    shop = Shop(40, limits)
    for _ in range(3):
        shop.add(5, 30)
    shop.step()
    long = shop.add(640, 3)
    for _ in range(50):
        if long not in shop.live:
            break
        shop.add(5, 30)
        shop.step()
    assert long not in shop.live


@pytest.mark.parametrize(
    "limits",
    [
        {"max_sequences": 0},
        {"chunk_tokens": 0},
        {"max_sequences": 64, "max_step_tokens": 63, "chunk_tokens": 1},
        # Room for the decoding ones but not for a chunk beside them: prompts would starve.
        {"max_sequences": 64, "max_step_tokens": 128, "chunk_tokens": 128},
        {"max_sequences": 1, "max_step_tokens": 16, "chunk_tokens": 17},
    ],
)
def test_limits_under_which_somebody_would_starve_are_refused(limits: dict[str, int]):
    with pytest.raises(ValueError, match="must"):
        SchedulerLimits(**limits)


def test_decoding_sequences_get_their_token_every_step_while_a_long_prompt_is_prefilled():
    shop = Shop(40, SchedulerLimits(max_sequences=8, chunk_tokens=64, max_step_tokens=128))
    talkers = [shop.add(3, 50) for _ in range(4)]
    shop.step()
    shop.add(1000, 1)
    while len(shop.live) == 5:
        planned = shop.step()
        assert set(talkers) <= {work.sequence for work in planned}


def test_the_youngest_is_sent_back_and_recomputed_from_its_prompt_and_what_it_has_said():
    shop = Shop(4, SchedulerLimits(chunk_tokens=64))  # three pages
    old = shop.add(100, 100)
    shop.step()
    young = shop.add(20, 100)
    while not shop.scheduler.num_preemptions:
        shop.step()
    assert shop.scheduler.sent_back == [young]
    said = young.num_emitted
    assert said > 0
    assert (young.num_computed, young.pages) == (0, [])
    shop.run()
    assert old.num_emitted == 92  # the pool bounds the context: 3 * 64
    assert young.num_emitted == 100


def test_batch_is_sent_back_before_a_younger_interactive_one_but_only_once():
    shop = Shop(4, SchedulerLimits(chunk_tokens=64))  # three pages
    batch = shop.add(50, 120, Terms(is_batch=True))
    shop.step()
    shop.add(50, 60)
    while not shop.scheduler.num_preemptions:
        shop.step()
    assert shop.scheduler.waiting == [batch]
    while shop.scheduler.waiting:
        shop.step()
    young = shop.add(50, 100)
    while shop.scheduler.num_preemptions == 1:
        shop.step()
    assert shop.scheduler.sent_back == [young]
    shop.run()


def test_an_interactive_sequence_takes_the_place_of_batch_and_never_a_place_for_nothing():
    shop = Shop(40, SchedulerLimits(max_sequences=2, chunk_tokens=64))
    batch = [shop.add(10, 100, Terms(is_batch=True)) for _ in range(2)]
    shop.step()
    shop.add(10, 100)
    shop.step()
    assert shop.scheduler.waiting == [batch[1]]
    shop.add(10, 100)
    shop.step()
    assert shop.scheduler.waiting == batch
    too_long = shop.add(39 * 64 - 1, 1)
    shop.step()
    assert too_long in shop.scheduler.waiting
    assert shop.scheduler.num_preemptions == 2
    shop.run()


def test_whoever_was_sent_back_returns_when_somebody_has_ended_and_not_before():
    """Else it would be prefilled only to be sent back again at the next page."""
    shop = Shop(12, SchedulerLimits(chunk_tokens=64))
    for _ in range(6):
        shop.add(100, 400)
    somebody_ended = True
    while shop.live:
        running, finished = set(shop.scheduler.running), len(shop.finished)
        shop.step()
        assert somebody_ended or set(shop.scheduler.running) <= running
        somebody_ended = len(shop.finished) > finished
    assert shop.scheduler.num_preemptions > 0


def works(planned: Iterable[Work]) -> list[tuple[str, int, int]]:
    return [(w.sequence.request_id, w.sequence.num_computed, w.num_tokens) for w in planned]


def test_a_prompt_is_cut_at_absolute_multiples_and_the_next_begins_in_the_same_step():
    shop = Shop(40, SchedulerLimits(max_sequences=4, chunk_tokens=128, max_step_tokens=300))
    shop.add(300, 1)
    shop.add(200, 1)
    seen = []
    while shop.live:
        planned = shop.scheduler.plan()
        seen.append(works(planned))
        for work in planned:
            work.sequence.num_computed += work.num_tokens
            if work.sequence.num_computed == len(work.sequence.tokens):
                shop.cancel(work.sequence)
    assert seen == [
        [("1", 0, 128), ("2", 0, 128)],
        [("1", 128, 128), ("2", 128, 72)],
        [("1", 256, 44)],
    ]


def test_an_idle_scheduler_plans_nothing():
    scheduler = Scheduler(PagePool(5), SchedulerLimits())
    assert not scheduler.has_work
    assert scheduler.plan() == []
