"""The history checker: what is as promised passes, and whatever is done to it is found."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.history import (
    StreamEvent,
    by_request,
    check,
    differing,
    from_lines,
    longest_gap_s,
    slowdown,
    to_lines,
    tokens_of,
)


def told(request: str, tokens: list[int], start_s: float = 0.0, finish: str = "length") -> list[StreamEvent]:
    """What a client sees of an answer that is as promised; an event per second."""
    sent = StreamEvent(kind="sent", request=request, at_s=start_s)
    came = [
        StreamEvent(kind="token", request=request, at_s=start_s + 1 + i, sequence=i, token_id=token)
        for i, token in enumerate(tokens)
    ]
    at_s = start_s + 1 + len(tokens)
    end = StreamEvent(kind="end", request=request, at_s=at_s, finish=finish, num_tokens=len(tokens))
    return [sent, *came, end]


answers = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=4
)


@given(answers, st.randoms(use_true_random=False))
def test_answers_as_promised_pass_however_they_interleave(answers: dict[str, list[int]], random):
    queues = {request: told(request, tokens) for request, tokens in answers.items()}
    history = []
    while queues:
        request = random.choice(sorted(queues))
        history.append(queues[request].pop(0))
        if not queues[request]:
            del queues[request]
    assert check(history, answers) == []
    assert {name: tokens_of(events) for name, events in by_request(history).items()} == answers
    assert from_lines(to_lines(history)) == history


@given(st.lists(st.integers(0, 5), min_size=2, max_size=8), st.data())
def test_a_token_that_is_missing_doubled_moved_or_changed_is_found(tokens: list[int], data: st.DataObject):
    history = told("a", tokens)
    place = data.draw(st.integers(1, len(tokens)), "place")
    deed = data.draw(st.sampled_from(["drop", "double", "swap", "change"]), "deed")
    token = history[place]
    if deed == "drop":
        del history[place]
        rules = {"text", "usage"} | ({"gap"} if place < len(tokens) else set())
    elif deed == "double":
        history.insert(place, token)
        rules = {"text", "usage", "duplicate"}
    elif deed == "swap":
        history[1], history[-2] = history[-2], history[1]
        rules = {"gap", "duplicate"} | ({"text"} if tokens[0] != tokens[-1] else set())
    else:
        history[place] = dataclasses.replace(token, token_id=9)
        rules = {"text"}
    assert {breach.rule for breach in check(history, {"a": tokens})} == rules


@pytest.mark.parametrize(
    ("spoil", "rules"),
    [
        (lambda events: events[:-1], {"end"}),
        (lambda events: [*events, events[-1]], {"end"}),
        (lambda events: [events[0], events[-1], *events[1:-1]], {"end"}),
        (lambda events: [*events[:-1], dataclasses.replace(events[-1], num_tokens=2)], {"usage"}),
        (lambda events: [*events[:-1], dataclasses.replace(events[-1], num_tokens=None)], {"usage"}),
        (lambda events: [*events[:-1], dataclasses.replace(events[-1], finish="error: x")], {"failed"}),
        (lambda events: [events[0], dataclasses.replace(events[-1], finish="cut")], {"failed"}),
    ],
    ids=["no end", "two ends", "tokens after the end", "usage", "no usage", "error", "cut"],
)
def test_an_answer_that_does_not_end_once_and_well_is_found(spoil, rules: set[str]):
    tokens = [5, 6, 7]
    assert {breach.rule for breach in check(spoil(told("a", tokens)), {"a": tokens})} == rules


def test_an_answer_that_was_cut_differs_only_in_what_came():
    assert differing([1, 2], [1, 2, 3, 4], is_whole=False) == 0
    assert differing([1, 9], [1, 2, 3, 4], is_whole=False) == 1
    assert differing([1, 2], [1, 2, 3, 4], is_whole=True) == 2
    assert differing([1, 2, 3], [1, 2], is_whole=True) == 1


@given(st.lists(st.floats(0, 100), min_size=2, max_size=9), st.floats(0, 100))
def test_the_longest_gap_is_that_of_one_request_and_ended_in_time(times_s: list[float], since_s: float):
    times_s.sort()
    events = [StreamEvent(kind="token", request="a", at_s=at_s) for at_s in times_s]
    others = [StreamEvent(kind="token", request=f"b{i}", at_s=at_s) for i, at_s in enumerate(times_s)]
    expected = max((b - a for a, b in itertools.pairwise(times_s) if b >= since_s), default=0.0)
    assert longest_gap_s([*events, *others], since_s) == expected


def test_the_longest_request_after_a_fault_is_compared_with_the_p99_of_those_before():
    before = [event for n in range(8) for event in told(f"b{n}", [1] * 3, start_s=n)]  # 4 s each
    during = told("d", [1] * 7, start_s=10.0)  # 8 s, the fault at 15
    assert slowdown([*before, *during], 15.0) == 2.0
    assert slowdown(before, 15.0) is None, "nothing came after"
    assert slowdown([*before[5:], *during], 15.0) is None, "too few to compare with"
