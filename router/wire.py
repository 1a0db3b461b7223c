"""Frames on a socket: checked lengths, typed headers.

A frame is `magic, header bytes, payload bytes` followed by a msgpack map and raw payload. Knows nothing of
what the messages mean: a message is a frozen dataclass with a `KIND`, and only kinds that the reader was
given are accepted. Nothing read from a socket is ever executed.

Errors: WireError > FrameTooLarge, BadFrame.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
import types
import typing
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

import msgpack

PREFIX = struct.Struct("<4sIQ")  # magic, header length, payload length
MAGIC = b"SHL1"
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 30

Bytes = bytes | bytearray | memoryview


class WireError(Exception):
    """The peer sent something that is not a frame of ours; the connection must be closed."""


class FrameTooLarge(WireError):  # noqa: N818 - named for what happened, as the rest of the tree
    """A declared length is over the limit."""


class BadFrame(WireError):  # noqa: N818
    """Wrong magic, not msgpack, unknown kind, or a field of the wrong type."""


class Message(Protocol):
    """What may travel in a header: a dataclass that names its kind."""

    KIND: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


M = TypeVar("M", bound=Message)
Kinds = dict[str, type[Message]]


def kinds(*messages: type[Message]) -> Kinds:
    """The set of messages that one end of a connection accepts."""
    return {message.KIND: message for message in messages}


def encode(message: Message, payload_bytes: int = 0) -> bytes:
    """The prefix and header of a frame whose payload of `payload_bytes` follows."""
    fields = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    header = msgpack.packb([message.KIND, fields], use_bin_type=True)
    if len(header) > MAX_HEADER_BYTES:
        raise FrameTooLarge(f"header of {message.KIND} has {len(header)} bytes, over {MAX_HEADER_BYTES}")
    return PREFIX.pack(MAGIC, len(header), payload_bytes) + bytes(header)


def decode_prefix(prefix: Bytes, *, limit_bytes: int = MAX_PAYLOAD_BYTES) -> tuple[int, int]:
    """(header bytes, payload bytes) of the frame that starts with `prefix`; raises WireError."""
    magic, header_bytes, payload_bytes = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise BadFrame(f"frame starts with {bytes(magic)!r}, expected {MAGIC!r}")
    if header_bytes > MAX_HEADER_BYTES or header_bytes + payload_bytes > limit_bytes:
        raise FrameTooLarge(f"frame of {header_bytes} + {payload_bytes} bytes, over the limit {limit_bytes}")
    return header_bytes, payload_bytes


def decode_header(header: Bytes, accepted: Kinds) -> Message:
    """The message in `header`; raises BadFrame for anything that `accepted` does not describe."""
    try:
        raw = msgpack.unpackb(header, raw=False, strict_map_key=True, use_list=False)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise BadFrame(f"header is not msgpack: {type(error).__name__}") from None
    if not (
        isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[0], str) and isinstance(raw[1], dict)
    ):
        raise BadFrame("header is not [kind, fields]")
    kind, fields = raw
    message = accepted.get(kind)
    if message is None:
        raise BadFrame(f"unexpected message {kind[:40]!r}; accepted here: {', '.join(sorted(accepted))}")
    return from_fields(message, fields)


def from_fields(message: type[M], fields: dict[str, Any]) -> M:
    """`fields` as `message`, every field present (or defaulted) and of its declared type; raises BadFrame."""
    checks = _checks(message)
    unknown = fields.keys() - checks.keys()
    if unknown:
        raise BadFrame(f"{message.KIND} has an unknown field {sorted(map(str, unknown))[0][:40]!r}")
    for name, value in fields.items():
        if not checks[name](value):
            hint = typing.get_type_hints(message)[name]
            raise BadFrame(f"{message.KIND}.{name} is a {type(value).__name__}, expected {hint}")
    try:
        return message(**fields)
    except TypeError:
        missing = sorted(checks.keys() - fields.keys())
        raise BadFrame(f"{message.KIND} lacks one of {missing}") from None


Check = Callable[[Any], bool]


@functools.cache
def _checks(message: type) -> dict[str, Check]:
    """By field, whether a value is of its declared type; made once, since every frame asks."""
    names = {field.name for field in dataclasses.fields(message)}
    return {name: _check(hint) for name, hint in typing.get_type_hints(message).items() if name in names}


def _check(hint: Any) -> Check:
    """Of scalars, X | None, tuples, str-keyed dicts of those."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: True
    if origin is typing.Union or origin is types.UnionType:
        options = [_check(arg) for arg in args]
        return lambda value: any(option(value) for option in options)
    if origin is tuple:
        return _tuple_check(args)
    if origin is dict:
        key, item = map(_check, args)
        return lambda value: isinstance(value, dict) and all(key(k) and item(v) for k, v in value.items())
    if hasattr(hint, "__supertype__"):
        return _check(hint.__supertype__)
    if hint is float:
        return lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    return lambda value: isinstance(value, hint)


def _tuple_check(args: tuple[Any, ...]) -> Check:
    if len(args) == 2 and args[1] is Ellipsis:
        item = _check(args[0])
        return lambda value: isinstance(value, tuple) and all(map(item, value))
    items = [_check(arg) for arg in args]
    return lambda value: (
        isinstance(value, tuple)
        and len(value) == len(items)
        and all(item(one) for item, one in zip(items, value, strict=True))
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One received message with its raw payload."""

    message: Message
    payload: memoryview


class FrameParser:
    """Bytes in, frames out; does no I/O of its own.

    `accepted` and `limit_bytes` may be changed between feeds: a stranger is allowed less than an admitted
    peer.
    """

    def __init__(self, accepted: Kinds, limit_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self.accepted = accepted
        self.limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._needed = PREFIX.size

    @property
    def missing_bytes(self) -> int:
        """How many more the frame that `next_frame` could not return wants at least."""
        return self._needed - len(self._buffer)

    def feed(self, data: Bytes) -> None:
        """Take what a socket gave; call `next_frame` until it returns None."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None until more bytes come; raises WireError."""
        if len(self._buffer) < self._needed:
            return None
        prefix = self._buffer[: PREFIX.size]
        header_bytes, payload_bytes = decode_prefix(prefix, limit_bytes=self.limit_bytes)
        body = PREFIX.size + header_bytes
        self._needed = body + payload_bytes
        if len(self._buffer) < self._needed:
            return None
        whole = self._buffer
        self._buffer = whole[self._needed :]
        self._needed = PREFIX.size
        view = memoryview(whole)
        message = decode_header(view[PREFIX.size : body], self.accepted)
        return Frame(message, view[body : body + payload_bytes])
