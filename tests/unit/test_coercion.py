"""A parameter's text becomes what its schema asks for, and nothing that it is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingress.coercion import ANYTHING, coerced, types_of

SCHEMAS: dict[str, Any] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "array": {"type": "array"},
    "object": {"type": "object"},
    "maybe string": {"type": ["string", "null"]},
    "maybe integer": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "choice": {"enum": [1, 2]},
    "word": {"enum": ["1", "2"]},
    "constant": {"const": True},
    "reference": {"$ref": "#/$defs/count"},
    "nowhere": {"$ref": "#/$defs/missing"},
    "circle": {"$ref": "#/$defs/circle"},
    "no type": {"$ref": "#/$defs/five"},  # it points at what nobody checked
    "anything": {},
    "true": True,
}
ROOT = {"$defs": {"count": {"type": "integer"}, "five": {"type": 5}, "circle": {"$ref": "#/$defs/circle"}}}


@pytest.mark.parametrize(
    ("schema", "text", "said_string", "value"),
    [
        ("string", "42", True, "42"),
        ("string", "42", False, "42"),
        ("string", "null", False, "null"),
        ("string", '"a"', True, '"a"'),
        ("string", '"a"', False, "a"),
        ("string", "a", None, "a"),
        ("integer", "42", True, 42),
        ("integer", "5.0", False, 5),
        ("integer", "5.5", False, 5.5),
        ("integer", "5.5", True, "5.5"),
        ("integer", "many", False, "many"),
        ("integer", "many", True, "many"),
        ("integer", "42", None, 42),
        ("integer", "true", False, True),
        ("number", "5", True, 5),
        ("number", "5.0", False, 5.0),
        ("boolean", "true", True, True),
        ("boolean", "False", True, False),
        ("boolean", "yes", True, "yes"),
        ("array", "[1]", True, [1]),
        ("object", '{"a": "1"}', True, {"a": "1"}),
        ("object", "{a: 1}", False, "{a: 1}"),
        ("maybe string", "null", True, "null"),
        ("maybe string", "null", False, None),
        ("maybe integer", "null", True, None),
        ("maybe integer", "3", True, 3),
        ("choice", "2", True, 2),
        ("word", "2", False, "2"),
        ("constant", "true", True, True),
        ("reference", "9", True, 9),
        ("nowhere", "9", True, "9"),
        ("circle", "9", False, 9),
        ("anything", "9", True, "9"),
        ("anything", "9", False, 9),
        ("anything", "9", None, 9),
        ("anything", "nine", None, "nine"),
        ("true", "9", False, 9),
        ("anything", "NaN", False, "NaN"),
        ("anything", "1e999", False, "1e999"),
        ("anything", '"\\ud800"', False, '"\\ud800"'),
        ("anything", "1" * 5000, False, "1" * 5000),
        ("anything", "[" * 100_000, False, "[" * 100_000),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_schema_has_the_last_word(schema: str, text: str, said_string: bool | None, value: Any):
    made = coerced(text, types_of(SCHEMAS[schema], ROOT), is_string=said_string)
    assert (made, type(made)) == (value, type(value))


@given(st.text(), st.sampled_from(sorted(SCHEMAS)), st.sampled_from([True, False, None]))
def test_whatever_the_text_the_value_can_be_written_as_json(text, schema, said_string):
    value = coerced(text, types_of(SCHEMAS[schema], ROOT), is_string=said_string)
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@given(st.text())
def test_a_string_stays_what_it_is_where_it_may_be_one(text):
    for schema in ("string", "maybe string", "anything", "word"):
        assert coerced(text, types_of(SCHEMAS[schema], ROOT), is_string=True) == text


def test_choices_that_lead_back_to_themselves_are_looked_at_once():
    """Followed one by one these would be a hundred to the power of the depth."""
    schema: dict[str, Any] = {"anyOf": [{"$ref": "#"}] * 100 + [{"type": "integer"}]}
    assert types_of(schema, schema) == {"integer"}
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        nested = {"oneOf": [nested, nested]}
    assert types_of(nested, nested) == {"string"}


def test_a_schema_that_does_not_say_allows_anything():
    for schema in ("anything", "true", "nowhere", "circle", "no type"):
        assert types_of(SCHEMAS[schema], ROOT) == ANYTHING
