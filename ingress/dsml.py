"""Tool calls in a model's text, as it comes.

Reads DSML character by character, so that how the text is cut cannot matter: a call comes out when its last
tag is closed, everything else as text. Knows nothing of tokens: in what it reads, one character that no text
can hold stands for the token that opens a tag.

The grammar is that of ingress/encoding.py, read leniently where nothing is lost: any white space between
tags, a call without the block around it, a block without its end, a parameter that does not say whether it
is a string. What breaks the grammar is text from there on, without the token: no marker reaches a client
(docs/decisions/013-tool-calls.md).
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingress.coercion import coerced, types_of

MARK = "\udc00"  # half a surrogate pair: UTF-8 cannot carry it, so no decoded text holds it
END = ""  # read once no more will come
NEWLINES_BEFORE = 2  # of a block; they belong to it
PLAIN = re.compile(f"[^\\n<{MARK}]*")  # what cannot begin a tag

Reading = Generator[None, None, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call, whole. arguments: a JSON object."""

    name: str
    arguments: str


Schemas = Mapping[str, Any]  # function -> the JSON schema of its parameters


def schemas_of(functions: Sequence[Mapping[str, Any]]) -> Schemas:
    return {function["name"]: function.get("parameters") for function in functions}


class CallParser:
    """Text in, text and calls out. One per choice."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._unread: deque[str] = deque()
        self._is_over = False
        self._held: list[str] = []  # read, not yet known to be text
        self._has_opened = False  # whether a tag was begun with the first mark that is held
        self._is_text = False  # whether no tag is under way
        self._found: list[str | ToolCall] = []
        self._reading = self._read()
        next(self._reading)

    def push(self, text: str) -> list[str | ToolCall]:
        """What `text` completes, in order."""
        if self._is_text and not self._held and PLAIN.fullmatch(text):
            return [text] if text else []  # nearly always
        self._unread.extend(text)
        next(self._reading)
        return self._take()

    def close(self) -> list[str | ToolCall]:
        """What was held back; no more will come."""
        self._is_over = True
        next(self._reading, None)
        return self._take()

    def _take(self) -> list[str | ToolCall]:
        found, self._found = self._found, []
        return found

    def _read(self) -> Reading:
        while (yield from self._text()):
            try:
                yield from self._block()
            except _Broken:
                self._give_up()

    def _text(self) -> Generator[None, None, bool]:
        """Up to and including what opens a tag; False at the end."""
        self._is_text = True
        while (char := (yield from self._next())) != END:
            if char == MARK and self._held[-2:-1] == ["<"]:
                self._release(len(self._held) - _opening(self._held[:-1]) - 1)
                self._has_opened, self._is_text = True, False
                return True
            self._release(len(self._held) - _opening(self._held))
        self._release(len(self._held))
        return False

    def _block(self) -> Reading:
        """After the mark of a first tag: a block of calls, or a call without one."""
        if (yield from self._next()) == "i":
            yield from self._literal('nvoke name="')
            yield from self._call()
            return
        self._require("f")
        yield from self._literal("unction_calls>")
        yield from self._space()
        while True:
            yield from self._literal(MARK + 'invoke name="')
            yield from self._call()
            if (yield from self._ends_block()):
                self._held.clear()
                return

    def _ends_block(self) -> Generator[None, None, bool]:
        """After a call: whether the block's end follows, or nothing, and not another call."""
        yield from self._space(or_end=True)
        if self._held[-1] == END:
            return True
        if (yield from self._peek()) == MARK:
            return False
        yield from self._literal(f"/{MARK}function_calls>")
        return True

    def _call(self) -> Reading:
        """From the name on to the end of the call."""
        name = yield from self._quoted()
        yield from self._literal(">")
        schema = self._schemas.get(name)
        arguments: dict[str, Any] = {}
        while True:
            yield from self._space()
            if (yield from self._next()) == "/":
                yield from self._literal(MARK + "invoke>")
                break
            self._require(MARK)
            yield from self._literal('parameter name="')
            key = yield from self._quoted()
            is_string = yield from self._is_string()
            value = yield from self._value()
            if key in arguments:
                raise _Broken
            types = types_of(_parameter(schema, key), schema)
            arguments[key] = coerced(value, types, is_string=is_string)
        self._held.clear()
        self._has_opened = False
        self._found.append(ToolCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False)))

    def _quoted(self) -> Generator[None, None, str]:
        """A name and its closing quote; one line, not empty."""
        chars: list[str] = []
        while (char := (yield from self._next())) != '"':
            if char in (END, MARK, "\n"):
                raise _Broken
            chars.append(char)
        if not chars:
            raise _Broken
        return "".join(chars)

    def _is_string(self) -> Generator[None, None, bool | None]:
        """The rest of a parameter's tag; None where it does not say."""
        if (yield from self._next()) == ">":
            return None
        self._require(" ")
        yield from self._literal('string="')
        is_string = (yield from self._peek()) == "t"
        yield from self._literal('true">' if is_string else 'false">')
        return is_string

    def _value(self) -> Generator[None, None, str]:
        """Everything up to the end tag, as it stands."""
        chars: list[str] = []
        while (char := (yield from self._next())) != MARK:
            if char == END:
                raise _Broken
            chars.append(char)
        if chars[-2:] != ["<", "/"]:
            raise _Broken
        yield from self._literal("parameter>")
        return "".join(chars[:-2])

    def _space(self, *, or_end: bool = False) -> Reading:
        """White space and the `<` after it."""
        while (char := (yield from self._next())).isspace():
            pass
        if char != "<" and not (or_end and char == END):
            raise _Broken

    def _literal(self, text: str) -> Reading:
        for wanted in text:
            yield from self._next()
            self._require(wanted)

    def _require(self, char: str) -> None:
        """That it was read last."""
        if self._held[-1] != char:
            raise _Broken

    def _next(self) -> Generator[None, None, str]:
        char = yield from self._peek()
        if char != END:
            self._unread.popleft()
        self._held.append(char)
        return char

    def _peek(self) -> Generator[None, None, str]:
        while not self._unread:
            if self._is_over:
                return END
            yield
        return self._unread[0]

    def _release(self, count: int) -> None:
        """The first `count` held characters are text."""
        text = "".join(self._held[:count]).replace(MARK, "")
        del self._held[:count]
        if text:
            self._found.append(text)

    def _give_up(self) -> None:
        """What is held is no call. The mark that it began with is text; what follows may open another tag."""
        held = self._held
        count = held.index(MARK) + 1 if self._has_opened else 0
        self._unread.extendleft(reversed([char for char in held[count:] if char != END]))
        del held[count:]
        self._release(count)


class _Broken(Exception):  # noqa: N818 - named for what happened, as the rest of the tree
    """The text does not go on as a call would."""


def _opening(held: Sequence[str]) -> int:
    """How many of the last characters may belong to the tag that opens a block."""
    count = 1 if held and held[-1] == "<" else 0
    for _ in range(NEWLINES_BEFORE):
        count += held[-count - 1 : len(held) - count] == ["\n"]
    return count


def _parameter(schema: Any, name: str) -> Any:
    """What `schema` says of one parameter; None where it says nothing."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties.get(name) if isinstance(properties, Mapping) else None
