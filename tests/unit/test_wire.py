"""Frames: any split gives the same ones, anything else is a WireError."""

import struct
import tracemalloc
from dataclasses import dataclass
from typing import ClassVar

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.wire import (
    MAGIC,
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    PREFIX,
    BadFrame,
    FrameParser,
    FrameTooLarge,
    WireError,
    decode_header,
    decode_prefix,
    encode,
    kinds,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    KIND: ClassVar[str] = "note"
    number: int
    ratio: float
    text: str
    blob: bytes
    flag: bool
    key: tuple[int, int]
    many: tuple[float, ...] = ()
    table: dict[str, int | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ping:
    KIND: ClassVar[str] = "ping"


GOOD = {"number": 1, "ratio": 0.5, "text": "t", "blob": b"b", "flag": True, "key": (1, 2)}
INTS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False)
NOTES = st.builds(
    Note,
    number=INTS,
    ratio=FLOATS,
    text=st.text(max_size=40),
    blob=st.binary(max_size=40),
    flag=st.booleans(),
    key=st.tuples(INTS, INTS),
    many=st.lists(FLOATS, max_size=5).map(tuple),
    table=st.none() | st.dictionaries(st.text(max_size=5), st.none() | INTS, max_size=4),
)
FRAMES = st.tuples(NOTES | st.just(Ping()), st.binary(max_size=300))
# Everything that msgpack can say, tuples where it says lists.
ANYTHING = st.recursive(
    st.none() | st.booleans() | INTS | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def raw_frame(header: bytes, payload: bytes = b"") -> bytes:
    return PREFIX.pack(MAGIC, len(header), len(payload)) + header + payload


def drain(parser: FrameParser) -> list[tuple[object, bytes]]:
    frames = []
    while (frame := parser.next_frame()) is not None:
        frames.append((frame.message, bytes(frame.payload)))
    return frames


def parse(data: bytes, accepted=None) -> list[tuple[object, bytes]]:
    parser = FrameParser(accepted if accepted is not None else kinds(Note, Ping))
    parser.feed(data)
    return drain(parser)


@settings(max_examples=40, deadline=None)
@given(st.lists(FRAMES, max_size=5), st.data())
def test_however_the_bytes_are_split_the_same_frames_come_out(frames, data):
    stream = b"".join(encode(message, len(payload)) + payload for message, payload in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parser = FrameParser(kinds(Note, Ping))
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        parser.feed(stream[start:end])
        got += drain(parser)
    assert got == frames


def test_one_byte_at_a_time_gives_the_same_frames():
    frames = [(Note(**GOOD), b"payload"), (Ping(), b""), (Ping(), b"x" * 500)]
    parser, got = FrameParser(kinds(Note, Ping)), []
    for byte in b"".join(encode(message, len(payload)) + payload for message, payload in frames):
        parser.feed(bytes([byte]))
        got += drain(parser)
    assert got == frames


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_incomplete_or_a_wire_error(noise, after_a_good_magic):
    try:
        frames = parse(MAGIC + noise if after_a_good_magic else noise)
    except WireError:
        return
    assert frames == []


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=120))
def test_a_header_of_random_bytes_is_a_wire_error(noise):
    with pytest.raises(WireError):
        parse(raw_frame(noise))


@settings(max_examples=40, deadline=None)
@given(NOTES, st.data())
def test_a_flipped_byte_is_a_wire_error_or_a_well_typed_message(note, data):
    frame = bytearray(encode(note, 0))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= data.draw(st.integers(1, 255))
    try:
        frames = parse(bytes(frame))
    except WireError:
        return
    for message, _ in frames:
        assert isinstance(message, Note)
        assert type(message.number) is int
        assert isinstance(message.key, tuple)
        assert len(message.key) == 2


@settings(max_examples=40, deadline=None)
@given(ANYTHING)
def test_well_formed_msgpack_that_is_no_message_is_a_wire_error(value):
    with pytest.raises(WireError):
        parse(raw_frame(msgpack.packb(value)))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(GOOD)), ANYTHING)
def test_a_field_holds_its_declared_type_or_the_frame_is_bad(name, value):
    allowed = {"number": int, "ratio": int | float, "text": str, "blob": bytes, "flag": bool}
    try:
        [(message, _)] = parse(raw_frame(msgpack.packb(["note", {**GOOD, name: value}])))
    except BadFrame:
        return
    got = getattr(message, name)
    if name == "key":
        assert [type(item) for item in got] == [int, int]
    else:
        assert isinstance(got, allowed[name])
        assert isinstance(got, bool) == (name == "flag")


@pytest.mark.parametrize(
    "fields",
    [
        {**GOOD, "extra": 1},
        {name: value for name, value in GOOD.items() if name != "text"},
        {},
        {**GOOD, "key": (1,)},
        {**GOOD, "key": (1, 2, 3)},
        {**GOOD, "key": (1, 2.0)},
        {**GOOD, "many": (1.0, "x")},
        {**GOOD, "table": {"a": "x"}},
        {**GOOD, "number": True},
        {**GOOD, "ratio": True},
        {**GOOD, "KIND": "ping"},
        {**GOOD, "__class__": "x"},
        {**GOOD, b"number": 1},
    ],
)
def test_missing_extra_and_mistyped_fields_are_bad_frames(fields):
    with pytest.raises(BadFrame):
        parse(raw_frame(msgpack.packb(["note", fields])))


def test_fields_with_a_default_may_be_left_out():
    assert parse(raw_frame(msgpack.packb(["note", GOOD]))) == [(Note(**GOOD), b"")]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        msgpack.packb("note"),
        msgpack.packb(["note"]),
        msgpack.packb(["note", GOOD, 1]),
        msgpack.packb({"note": GOOD}),
        msgpack.packb([b"ping", {}]),
        msgpack.packb([1, {}]),
        msgpack.packb(["ping", []]),
        msgpack.packb(["ping", {1: 2}]),
        msgpack.packb(["ping", {}]) + b"\x00",  # something after the message
        b"\x92\xa4ping\xdf\xff\xff\xff\xff",  # a map of four thousand million entries
        b"\x92\xa4ping\xdd\xff\xff\xff\xff",
        b"\x92\xa4ping\xc6\xff\xff\xff\xff",
        b"\x92\xa4pin\xff\x80",  # not UTF-8
        b"\x91" * 100_000,  # nested deeper than any stack
        b"\x92\xa4ping\x81\xa1x\xd6\xff\x00\x00\x00\x00",  # msgpack's timestamp extension
        b"\x92\xa4ping\x81\xa1x\xc7\x03\xff\x00\x00\x00",  # the same, of a length that is none
        b"\x92\xa4ping\x81\xc7\x01\x05\x00\x01",  # an extension as a key
        b"\xc1",
    ],
)
def test_headers_that_are_no_message_are_bad_frames(header):
    with pytest.raises(BadFrame):
        decode_header(header, kinds(Ping))


@pytest.mark.parametrize("accepted", [{}, kinds(Note)])
def test_a_kind_that_this_end_does_not_accept_is_a_bad_frame(accepted):
    with pytest.raises(BadFrame, match="ping"):
        parse(encode(Ping()), accepted)


def test_a_wrong_magic_is_refused_as_soon_as_the_prefix_is_there():
    with pytest.raises(BadFrame, match="NOPE"):
        parse(b"NOPE" + bytes(12))


@pytest.mark.parametrize(
    ("header_bytes", "payload_bytes"),
    [
        (MAX_HEADER_BYTES + 1, 0),
        (2**32 - 1, 0),
        (0, MAX_PAYLOAD_BYTES + 1),
        (0, 2**64 - 1),
        (2**32 - 1, 2**64 - 1),
    ],
)
def test_a_huge_declared_length_is_refused_before_anything_is_allocated(header_bytes, payload_bytes):
    parser = FrameParser(kinds(Ping))
    prefix = PREFIX.pack(MAGIC, header_bytes, payload_bytes)
    tracemalloc.start()
    try:
        parser.feed(prefix)
        with pytest.raises(FrameTooLarge):
            parser.next_frame()
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 16


def test_an_allowed_length_takes_no_memory_until_its_bytes_come():
    parser = FrameParser(kinds(Ping))
    tracemalloc.start()
    try:
        parser.feed(PREFIX.pack(MAGIC, 10, MAX_PAYLOAD_BYTES - 10) + bytes(1000))
        assert parser.next_frame() is None
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 16


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5000))
def test_header_and_payload_together_must_fit_the_limit(header_bytes, payload_bytes, limit_bytes):
    prefix = PREFIX.pack(MAGIC, header_bytes, payload_bytes)
    if header_bytes + payload_bytes > limit_bytes:
        with pytest.raises(FrameTooLarge):
            decode_prefix(prefix, limit_bytes=limit_bytes)
    else:
        assert decode_prefix(prefix, limit_bytes=limit_bytes) == (header_bytes, payload_bytes)


def test_a_header_too_large_to_be_read_is_not_written_either():
    with pytest.raises(FrameTooLarge, match="note"):
        encode(Note(**{**GOOD, "blob": bytes(MAX_HEADER_BYTES)}))


def test_the_prefix_is_sixteen_bytes_in_network_independent_order():
    assert encode(Ping(), 5)[:16] == b"SHL1" + struct.pack("<IQ", len(encode(Ping())) - 16, 5)
