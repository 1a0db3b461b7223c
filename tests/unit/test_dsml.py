"""Tool calls in text: no cut shows, no marker leaks, nothing is lost, and what the encoder wrote is read."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.dsml import MARK, CallParser, ToolCall, schemas_of
from ingress.encoding import encode_history
from ingress.specials import DSML, EOS, Special

FUNCTIONS = [
    {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}, "n": {}}}},
    {"name": "g"},
]


def marked(text: str) -> str:
    """As the parser reads it: the token is one character."""
    return text.replace(DSML.text, MARK)


def parsed(*pieces: str, functions: list[dict[str, Any]] = FUNCTIONS) -> list[str | ToolCall]:
    """Everything that comes out, texts beside each other joined."""
    parser = CallParser(schemas_of(functions))
    found = [one for piece in pieces for one in parser.push(piece)] + parser.close()
    joined: list[str | ToolCall] = []
    for is_text, run in itertools.groupby(found, key=lambda one: isinstance(one, str)):
        ones = list(run)
        joined.extend(["".join(ones)] if is_text else ones)
    return joined


def calls_of(found: list[str | ToolCall]) -> list[tuple[str, Any]]:
    return [(one.name, json.loads(one.arguments)) for one in found if isinstance(one, ToolCall)]


def text_of(found: list[str | ToolCall]) -> str:
    return "".join(one for one in found if isinstance(one, str))


def block(*invokes: str) -> str:
    return (
        "<｜DSML｜function_calls>\n"
        + "\n".join(f"<｜DSML｜invoke {invoke}\n</｜DSML｜invoke>" for invoke in invokes)
        + "\n</｜DSML｜function_calls>"
    )


def parameter(name: str, value: str, is_string: str = "true") -> str:
    return f'<｜DSML｜parameter name="{name}" string="{is_string}">{value}</｜DSML｜parameter>'


F = block('name="f">\n' + parameter("a", 'x<b></c>\n"') + "\n" + parameter("n", "[1, 2]", "false"))
F_CALL = ("f", {"a": 'x<b></c>\n"', "n": [1, 2]})
GRAMMAR = [
    *("<", "</", ">", "\n", "\n\n", "｜DSML｜", '"', " ", "text", 'name="f">', 'name="', 'string="'),
    *("function_calls>", "invoke ", "invoke>", "parameter ", "parameter>", 'string="true">', "false"),
    *("<｜DSML｜function_calls>\n", '<｜DSML｜invoke name="f">\n', "\n</｜DSML｜invoke>", "1", "é\U0001f600"),
    *(parameter("a", "v"), parameter("n", "1", "false"), "\n</｜DSML｜function_calls>", F, "\n\n" + F),
]
written = st.lists(st.sampled_from(GRAMMAR), max_size=24).map("".join)


@given(written, st.lists(st.integers(0, 999), max_size=8))
def test_however_it_is_cut_the_same_comes_out(text, places):
    text = marked(text)
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    whole = parsed(text)
    assert parsed(*(text[start:end] for start, end in itertools.pairwise(edges))) == whole
    assert parsed(*text) == whole


@given(written)
def test_no_marker_leaks_and_every_call_is_whole(text):
    found = parsed(*marked(text))
    assert MARK not in text_of(found)
    assert DSML.text not in text_of(found)
    for _, arguments in calls_of(found):
        assert isinstance(arguments, dict)


@given(written)
def test_what_is_no_call_comes_out_as_text_to_the_last_character(text):
    found = parsed(*marked(text))
    if not calls_of(found):
        assert text_of(found) == text.replace(DSML.text, "")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_without_the_token_is_text_and_is_held_back_by_three_characters_at_most(text):
    """Spelled out in ordinary tokens, a marker is text like any other."""
    text += F
    parser = CallParser({})
    shown = ""
    for place, char in enumerate(text, 1):
        shown += text_of(parser.push(char))
        assert text.startswith(shown)
        assert place - len(shown) <= 3
    assert shown + text_of(parser.close()) == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
keys = st.text(st.characters(exclude_characters='"\n', exclude_categories=["Cs"]), min_size=1, max_size=8)
calls = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True), st.dictionaries(keys, values, max_size=3)
    ),
    min_size=1,
    max_size=3,
)


@given(st.text(max_size=12), calls)
def test_what_the_encoder_writes_is_read_back_exactly(content, made):
    """Where the schema leaves types open, and with any text as content and values, markers included."""
    turn = {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for name, arguments in made
        ],
    }
    before = [{"role": "user", "content": "x"}]
    segments = encode_history([*before, turn])[len(encode_history(before)) :]
    assert segments[-1] == EOS
    text = "".join(MARK if segment == DSML else str(segment) for segment in segments[:-1])
    assert not any(isinstance(segment, Special) and segment != DSML for segment in segments[:-1])
    found = parsed(text, functions=[])
    assert text_of(found) == content
    assert calls_of(found) == made


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("so:\n\n" + F, "so:"),
        ("so:\n\n\n" + F, "so:\n"),
        ("so:" + F, "so:"),
        ("a < b\n" + F, "a < b"),
        ("<\n\n<\n" + F, "<\n\n<"),
        (F + "after", "after"),
        (F.replace(">\n<", ">  \n\n\t<"), ""),
        (F.removeprefix("<｜DSML｜function_calls>\n").removesuffix("\n</｜DSML｜function_calls>"), ""),
        (F.removesuffix("\n</｜DSML｜function_calls>"), ""),
        (F.removesuffix("\n</｜DSML｜function_calls>") + "\n", ""),
        ("<｜DSML｜function_calls>\n" + F, "<function_calls>"),
        (
            "<｜DSML｜function_calls>\n" + '<｜DSML｜invoke name="f">\n' + F,
            '<function_calls>\n<invoke name="f">',
        ),
        ("<｜DSML｜function_calls>\n" + '<｜DSML｜invoke name="' + F, '<function_calls>\n<invoke name="'),
    ],
)
def test_a_sound_call_is_found_whatever_is_around_it(text, wanted):
    found = parsed(*marked(text))
    assert calls_of(found) == [F_CALL]
    assert text_of(found) == wanted


@pytest.mark.parametrize(
    "damaged",
    [
        F[:-60],
        F.replace("invoke", "invokes", 1),
        F.replace('name="f"', 'name="f', 1),
        F.replace('name="f"', 'name=""', 1),
        F.replace('name="f"', "name='f'", 1),
        F.replace('string="true"', 'string="maybe"', 1),
        F.replace("</｜DSML｜parameter>", "</parameter>", 1),
        F.replace("</｜DSML｜parameter>", "<｜DSML｜parameter>", 1),
        F.replace("</｜DSML｜invoke>", "</invoke>"),
        F.replace('name="n"', 'name="a"'),
        F.replace("\n<｜DSML｜parameter", "\nwell <｜DSML｜parameter", 1),
        "<｜DSML｜function_calls>\n</｜DSML｜function_calls>",
        "<｜DSML｜function_calls>",
        "a ｜DSML｜ b",
        "</｜DSML｜function_calls>",
    ],
)
def test_a_damaged_call_is_text(damaged):
    assert parsed(marked(damaged)) == [damaged.replace(DSML.text, "")]


def test_calls_before_the_damage_stand():
    found = parsed(*marked(F.removesuffix("\n</｜DSML｜function_calls>") + " then\n" + F))
    assert calls_of(found) == [F_CALL, F_CALL]
    assert text_of(found) == " then"
    found = parsed(marked(F.removesuffix("\n</｜DSML｜function_calls>") + "\n\n" + F))
    assert found == [found[0], found[0]]
    assert calls_of(found) == [F_CALL, F_CALL]


def test_a_call_comes_with_its_last_character():
    parser = CallParser({})
    text = marked(F.removesuffix("\n</｜DSML｜function_calls>"))
    assert [one for char in text[:-1] for one in parser.push(char)] == []
    assert len(parser.push(text[-1])) == 1


def test_the_schema_of_each_tool_decides_on_types():
    functions = [
        {"name": name, "parameters": {"type": "object", "properties": {"v": {"type": kind}}}}
        for name, kind in (("number", "integer"), ("text", "string"))
    ]
    parser = CallParser(schemas_of(functions))
    text = block(*(f'name="{name}">\n' + parameter("v", "7") for name in ("number", "text", "unknown")))
    assert calls_of(parser.push(marked(text))) == [
        ("number", {"v": 7}),
        ("text", {"v": "7"}),
        ("unknown", {"v": "7"}),
    ]
    text = text.replace(' string="true"', "")
    assert [arguments for _, arguments in calls_of(parser.push(marked(text)))] == [
        {"v": 7},
        {"v": "7"},
        {"v": 7},
    ]
