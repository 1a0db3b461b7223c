"""Pages on the wire: what was sent is what is cached, or nothing is."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.counters import HandoverCounters
from actors.intake import KEPT_SHARE, LONGEST_S, Intake
from actors.page_frames import Offer, Pages, Taken, check_pages, pages_frame
from actors.pages import PagePool
from model.cache import LatentCache
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from router.wire import BadFrame, FrameParser, encode, kinds

NUM_PAGES = 17
KEYS = tuple(bytes([number]) * 32 for number in range(40))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def config(tiny_v32: Path) -> ModelConfig:
    return Checkpoint.open(tiny_v32).config


def cache_of(config: ModelConfig, dtype: torch.dtype, seed: int | None = None) -> LatentCache:
    cache = LatentCache(config, NUM_PAGES, dtype)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for slots in (*cache.latent_SC, *cache.index_SI):
            slots.copy_(torch.randn(slots.shape, generator=generator))
    return cache


def travelled(message: Pages, payload: bytes, cuts: list[int]) -> tuple[Pages, memoryview]:
    """As a socket would hand it over, in pieces."""
    parser, whole = FrameParser(kinds(Pages)), encode(message, len(payload)) + payload
    edges = [0, *sorted(cut % len(whole) for cut in cuts), len(whole)]
    for start, end in pairwise(edges):
        parser.feed(whole[start:end])
    frame = parser.next_frame()
    assert frame is not None and isinstance(frame.message, Pages)
    return frame.message, frame.payload


@given(
    pages=st.lists(st.integers(0, NUM_PAGES - 1), min_size=1, max_size=8, unique=True),
    cuts=st.lists(st.integers(0, 10**6), max_size=5),
    seed=st.integers(0, 100),
)
def test_a_page_arrives_bit_for_bit_in_every_layer(
    config: ModelConfig, dtype: torch.dtype, pages: list[int], cuts: list[int], seed: int
) -> None:
    made, filled = cache_of(config, dtype, seed), cache_of(config, dtype)
    payload = made.read(pages)
    message, came = travelled(pages_frame(range(len(pages)), payload), payload, cuts)
    check_pages(message, came, made.page_bytes)
    there = [NUM_PAGES - 1 - page for page in pages]
    filled.fill(there, came)
    assert filled.read(there) == payload
    rest = [page for page in range(NUM_PAGES) if page not in there]
    assert not any(filled.read(rest)), "no other page is touched"


@given(place=st.integers(0, 10**9), bit=st.integers(0, 7), missing=st.integers(0, 3))
def test_no_flipped_bit_and_no_lost_byte_is_ever_cached(
    config: ModelConfig, place: int, bit: int, missing: int
) -> None:
    made = cache_of(config, torch.float32, 1)
    payload = bytearray(made.read([3, 4]))
    message = pages_frame((0, 1), bytes(payload))
    if missing:
        del payload[-missing:]
    else:
        payload[place % len(payload)] ^= 1 << bit
    pool, cache = PagePool(NUM_PAGES), cache_of(config, torch.float32)
    intake = Intake(pool, cache, "m", HandoverCounters())
    assert intake.offered("a", Offer(maker="m", keys=KEYS[:2]), 0.0).places == (0, 1)
    answer = intake.came("a", message, memoryview(payload), 0.0)
    assert answer is not None and answer.problem
    assert (pool.num_published, pool.num_free) == (0, NUM_PAGES - 1)


def test_a_place_that_comes_twice_is_no_page() -> None:
    with pytest.raises(BadFrame):
        check_pages(pages_frame((1, 1), bytes(20)), bytes(20), 10)
    with pytest.raises(BadFrame):
        check_pages(pages_frame((), b""), b"", 10)


class Senders:
    """What two senders say to one intake, in any order."""

    def __init__(self, config: ModelConfig) -> None:
        self.made = cache_of(config, torch.float32, 2)
        self.pool, self.cache = PagePool(NUM_PAGES), cache_of(config, torch.float32)
        self.intake = Intake(self.pool, self.cache, "m", HandoverCounters())
        self.missing: dict[str, set[int]] = {}

    def offer(self, name: str, count: int, at_s: float) -> None:
        wanted = self.intake.offered(name, Offer(maker="m", keys=KEYS[:count]), at_s)
        known = {place for place in range(count) if self.pool.find(KEYS[place]) is not None}
        assert not known & {*wanted.places}
        assert {*wanted.places} | known >= {*range(wanted.num_fit)}
        self.missing[name] = {*wanted.places}

    def send(self, name: str, count: int, at_s: float) -> None:
        places = sorted(self.missing.get(name, ()))[:count]
        payload = bytearray(b"".join(self.made.read([place % NUM_PAGES]) for place in places))
        answer = self.intake.came(name, pages_frame(places, payload), memoryview(payload), at_s)
        if answer is None or answer.problem is None:
            self.missing[name].difference_update(places)
        assert (answer == Taken()) == (bool(places) and not self.missing.get(name))

    def check(self) -> None:
        for place, key in enumerate(KEYS):
            page = self.pool.find(key)
            if page is not None:
                assert self.cache.read([page]) == self.made.read([place % NUM_PAGES])
        assert not {*self.pool.unclean()} & {*self.pool._names}, "what was filled is not zeroed"


@given(
    said=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(["offer", "send", "leave", "expire", "compute"]),
            st.integers(1, NUM_PAGES + 3),
        ),
        max_size=25,
    )
)
def test_whatever_comes_in_whatever_order_no_page_is_lost_and_none_is_wrong(
    config: ModelConfig, said: list[tuple[str, str, int]]
) -> None:
    senders = Senders(config)
    pool, mine = senders.pool, []
    for at_s, (name, what, count) in enumerate(said):
        if what == "offer":
            senders.offer(name, count, float(at_s))
        elif what == "send":
            senders.send(name, count, float(at_s))
        elif what == "leave":
            senders.intake.forget(name)
            senders.missing.pop(name, None)
        elif what == "expire":
            senders.intake.expire(at_s + LONGEST_S)
            senders.missing.clear()
        elif pool.can_take(1):  # a sequence of one's own wants pages meanwhile
            mine += pool.take(1)
        senders.check()
    for name in "ab":
        senders.intake.forget(name)
    pool.give_back(mine)
    assert pool.num_free == NUM_PAGES - 1


def test_a_delivery_may_take_long_as_long_as_it_gets_on(config: ModelConfig) -> None:
    senders = Senders(config)
    senders.offer("a", 3, 0.0)
    for at_s in (0.9 * LONGEST_S, 1.8 * LONGEST_S):
        senders.intake.expire(at_s)
        senders.send("a", 1, at_s)
    senders.intake.expire(2.9 * LONGEST_S)
    payload = bytearray(senders.made.read([2]))
    answer = senders.intake.came("a", pages_frame((2,), payload), memoryview(payload), 3 * LONGEST_S)
    assert answer is not None and "not any more" in str(answer.problem)
    assert (senders.pool.num_published, senders.pool.num_free) == (2, NUM_PAGES - 1)


def test_a_part_of_the_pool_is_not_given_away_and_strangers_pages_are_not_wanted(config: ModelConfig) -> None:
    pool, cache = PagePool(NUM_PAGES), cache_of(config, torch.float32)
    intake = Intake(pool, cache, "m", HandoverCounters())
    most = pool.num_pages - pool.num_pages // KEPT_SHARE
    assert intake.offered("a", Offer(maker="m", keys=KEYS), 0.0).num_fit == most
    assert intake.offered("a", Offer(maker="another model", keys=KEYS), 0.0).num_fit == 0
    assert intake.offered("a", Offer(maker="m", keys=(b"short",)), 0.0).num_fit == 0
    assert intake.offered("a", Offer(maker="m", keys=KEYS[:1] * 2), 0.0).num_fit == 0
