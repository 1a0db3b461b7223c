"""What is left behind is found, and what was handed over is counted over lives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from cluster.footprint import Footprint, grown

BEFORE = Footprint(
    processes=Counter({"ray::Worker": 4}),
    descriptors=Counter({"ray::Worker": 40, "raylet": 200}),
    free_pages=30,
    sequences=0,
    handed_pages={},
    again_tokens={},
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"processes": Counter({"ray::Worker": 3}), "free_pages": 31}, []),
        ({"processes": Counter({"ray::Worker": 5})}, ["1 more ray::Worker"]),
        ({"descriptors": Counter({"ray::Worker": 48, "raylet": 220})}, []),
        ({"descriptors": Counter({"ray::Worker": 49})}, ["9 more open files in ray::Worker"]),
        ({"descriptors": Counter({"raylet": 221})}, ["21 more open files in raylet"]),
        ({"free_pages": 28}, ["2 fewer free pages"]),
        ({"sequences": 1}, ["1 sequences"]),
    ],
)
def test_what_is_more_than_before_is_said(change: dict, words: list[str]):
    assert replace(BEFORE, **change).beyond(BEFORE) == words


def test_a_total_grows_by_what_came_since_also_where_a_next_life_began_at_nothing():
    before = {"attention-0": 7.0, "attention-1": 2.0, "attention-2": 5.0}
    after = {"attention-0": 9.0, "attention-1": 1.0, "attention-3": 4.0}
    assert grown(after, before) == 2 + 1 + 4
