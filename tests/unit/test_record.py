"""A controller's record: read back as it was written, and nothing else is."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.record import Record, Seat

PAIRS = st.frozensets(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=20)
SEATS = st.builds(Seat, actor_id=st.text(max_size=12), is_leaving=st.booleans(), wanted=st.none() | PAIRS)
NUMBERS = st.integers(0, 1 << 40)
RECORDS = st.builds(
    Record, num_lives=NUMBERS, epoch=NUMBERS, renew_upto=NUMBERS, seats=st.lists(SEATS).map(tuple)
)


@given(record=RECORDS)
def test_what_is_written_is_read_again(record: Record):
    assert Record.from_bytes(record.to_bytes()) == record


@given(data=st.binary(max_size=40))
def test_anything_else_is_refused_with_words(data: bytes):
    try:
        Record.from_bytes(data)
    except ValueError as error:
        assert "not a controller's record" in str(error)


@pytest.mark.parametrize("value", [[1, 2], [1, 2, "x", []], [1, 2, 3, [["a", True]]], {"a": 1}, 7])
def test_another_shape_is_refused(value: object):
    with pytest.raises(ValueError, match="not a controller's record"):
        Record.from_bytes(msgpack.packb(value))
