"""Two actors of one host give each other memory: each its own, no more, and only for models of one shape."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.boxes import EXPERTS, HEAD, LATE, SCALES, TOLD, VALUES, WORDS
from kernels.fp8_rows import GROUP
from router.lanes import LanesTaken, Life
from router.shm import Geometry, OpenBox, Unfit
from router.wire import PREFIX, decode_header, encode, kinds
from tests.mailboxes import PlainPeer, asker_mailbox, expert_mailbox, join

CPU = torch.device("cpu")
GEOMETRY = Geometry(slots=2, capacity=3, width=2 * GROUP, per_row=4, places=5)
LAYERS, ALL = 2, 6


def life(name: str, incarnation: int = 1) -> Life:
    return Life(actor=name, incarnation=incarnation)


A, B, X, Y = map(life, "abxy")


@given(
    st.builds(
        Geometry,
        slots=st.integers(1, 3),
        capacity=st.integers(1, 9),
        width=st.integers(1, 4).map(lambda groups: groups * GROUP),
        per_row=st.integers(1, 8),
        places=st.integers(8, 9),
    ),
    st.integers(1, 3),
)
@settings(max_examples=25)
def test_what_is_written_to_one_box_or_lane_is_seen_in_no_other(geometry: Geometry, lanes: int) -> None:
    """Every byte that the tables give away is filled, once; nothing lies over anything else."""
    expert = expert_mailbox(geometry, lanes, CPU)
    askers = {life(str(number)): asker_mailbox(geometry, 2, (1, 8), CPU) for number in range(lanes)}
    spans: list[tuple[int, int]] = []
    for one, asker in askers.items():
        join(asker, one, expert, X)
        asker.set_owners({0: [X] * 8})
        for outbox in asker.outboxes:
            row = outbox.asked[1].tolist()
            spans.append((row[VALUES], geometry.capacity * geometry.width))
            spans.append((row[EXPERTS], geometry.capacity * geometry.per_row * 4))
            spans.append((row[HEAD], WORDS * 8))
            stride = row[len([VALUES, SCALES, EXPERTS, HEAD])] * 4
            for group in range(geometry.width // GROUP):
                spans.append((row[SCALES] + group * stride, geometry.capacity * 4))
    for pairs, words in expert.inbox.back.tolist():
        spans += [(pairs, geometry.lane_bytes), (words, WORDS * 8)]
    spans.sort()
    for (start, size), (following, _) in itertools.pairwise(spans):
        assert start + size <= following
    memories = [expert.memory, *(asker.memory for asker in askers.values())]
    for start, size in spans:
        assert any(m.address <= start and start + size <= m.address + m.buffer.numel() for m in memories)


def test_addresses_mean_the_tensors_of_the_other_side() -> None:
    expert = expert_mailbox(GEOMETRY, 2, CPU)
    asker = asker_mailbox(GEOMETRY, 3, (LAYERS, ALL), CPU)
    join(asker, A, expert, X)
    asker.set_owners({layer: [X] * ALL for layer in range(LAYERS)})
    inbox = expert.inbox
    for slot, outbox in enumerate(asker.outboxes):
        assert outbox.asked[1, VALUES] == inbox.rows.values_RK[slot * GEOMETRY.capacity].data_ptr()
        assert outbox.asked[1, SCALES] == inbox.rows.scale_GR[0, slot * GEOMETRY.capacity :].data_ptr()
        assert outbox.asked[1, EXPERTS] == inbox.experts[slot * GEOMETRY.capacity].data_ptr()
        assert outbox.asked[1, HEAD] == inbox.heads[slot].data_ptr()
        lane = outbox.answers.view(3, -1, GEOMETRY.width)[1]
        assert inbox.back[slot].tolist() == [lane.data_ptr(), outbox.words[1].data_ptr()]


def test_who_computes_nothing_is_not_asked() -> None:
    asker = asker_mailbox(GEOMETRY, 3, (LAYERS, ALL), CPU)
    experts = {one: expert_mailbox(GEOMETRY, 1, CPU) for one in (X, Y)}
    for one, expert in experts.items():
        join(asker, A, expert, one)
    assert not any(outbox.asked.any() for outbox in asker.outboxes), "nobody before there are owners"
    asker.set_owners({0: [X] * ALL, 1: [X, Y] * 3})
    assert [bool(outbox.asked[lane, HEAD]) for outbox in asker.outboxes for lane in (1, 2)] == [True] * 4
    asker.set_owners({0: [Y] * ALL, 1: [Y] * ALL})
    assert [bool(outbox.asked[lane, HEAD]) for outbox in asker.outboxes for lane in (1, 2)] == [
        False,
        True,
        False,
        True,
    ]


def test_a_mailbox_for_another_model_is_refused() -> None:
    expert = expert_mailbox(GEOMETRY, 1, CPU)
    other = asker_mailbox(replace(GEOMETRY, width=GROUP), 2, (LAYERS, ALL), CPU)
    with pytest.raises(Unfit):
        expert.open(A, other.ask(X))
    wanted = asker_mailbox(GEOMETRY, 2, (LAYERS, ALL), CPU).ask(X)
    for lane in (0, 2, -1):
        with pytest.raises(Unfit):
            expert.open(A, replace(wanted, lane=lane))


def test_a_lost_asker_is_answered_no_more_and_its_memory_stays_mapped_until_it_is_buried() -> None:
    peers: list[PlainPeer] = []

    def open_peer(handle: bytes) -> PlainPeer:
        peers.append(PlainPeer(handle))
        return peers[-1]

    expert = expert_mailbox(GEOMETRY, 1, CPU, open_peer)
    asker = asker_mailbox(GEOMETRY, 2, (LAYERS, ALL), CPU)
    join(asker, A, expert, X)
    expert.inbox.served.fill_(9)
    expert.lose(A)
    assert not expert.inbox.back.any()
    assert not peers[0].is_closed, "a turn that began before may still write there"
    with pytest.raises(LanesTaken):
        expert.open(B, asker_mailbox(GEOMETRY, 2, (LAYERS, ALL), CPU).ask(X))
    expert.bury(A)
    assert peers[0].is_closed
    join(asker_mailbox(GEOMETRY, 2, (LAYERS, ALL), CPU), B, expert, X)
    assert not expert.inbox.served.any(), "numbers begin anew"


def test_who_was_lost_is_told_by_name_and_reason_and_its_lane_waits_for_its_end() -> None:
    asker = asker_mailbox(GEOMETRY, 3, (LAYERS, ALL), CPU)
    for one in (X, Y):
        join(asker, A, expert_mailbox(GEOMETRY, 1, CPU), one)
    asker.tell_lost(Y)
    asker.lost[asker.lanes[X]] = LATE
    assert asker.found_lost(asker.lost) == {X: LATE, Y: TOLD}
    asker.lose(X)
    assert asker.found_lost(asker.lost) == {Y: TOLD}
    with pytest.raises(LanesTaken):
        asker.ask(life("x", 2))
    asker.bury(X)
    again = asker.ask(life("x", 2))
    assert not asker.lost[again.lane], "a new life begins without a stain"


def test_messages_survive_the_wire() -> None:
    wanted = asker_mailbox(GEOMETRY, 2, (LAYERS, ALL), CPU).ask(X)
    assert decode_header(encode(wanted)[PREFIX.size :], kinds(OpenBox)) == wanted
