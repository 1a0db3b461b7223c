"""Tool calls as a grammar.

A block of calls in DSML whose arguments fit the schemas of the tools: what ingress/encoding.py writes of such
calls, token for token, and ingress/dsml.py reads back. Knows nothing of requests.

A string that its schema does not narrow stands as it is, like every listed one; whatever is narrowed further
(a pattern, a length) or may be of several types stands as JSON, which says both.

Errors: InvalidRequest (ingress/errors.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ingress.errors import InvalidRequest
from ingress.json_grammar import JsonRules

HEAD = "call"
NARROWING = frozenset(("pattern", "format", "minLength", "maxLength", "$ref", "anyOf", "oneOf", "allOf"))
UNREADABLE = frozenset('"\n\r')  # in the name of a parameter
# What describes the arguments as a whole, beyond a list of parameters.
NOT_LISTED = ("anyOf", "oneOf", "allOf", "patternProperties", "minProperties", "maxProperties", "$ref")
DEFINITIONS = ("$defs", "definitions")
TAG_END = "</"  # of a value: the token comes next, which no text can hold
ANY_TEXT = r"TEXT: /(?s:.*)<\//"


def calls_rules(
    functions: Sequence[Mapping[str, Any]], mark_id: int, rules: JsonRules, *, is_one: bool
) -> list[str]:
    """The rules of one or more calls, the first named `calls`. mark_id: of the token that opens a tag."""
    names = [f"{HEAD}_{place}" for place in range(len(functions))]
    more = "" if is_one else ' ("\\n" one_call)*'
    lines = [
        f'calls: "\\n\\n<" mark "function_calls>\\n" one_call{more} "\\n" "</" mark "function_calls>"',
        f"one_call: {' | '.join(names)}",
        f"mark: <[{mark_id}]>",
        ANY_TEXT,
    ]
    for name, function in zip(names, functions, strict=True):
        is_strict = function.get("strict") is True
        lines += _call_rules(name, function, JsonRules(is_strict=True) if is_strict else rules)
    return lines


def quoted(text: str) -> str:
    """`text` as a literal of the grammar."""
    return json.dumps(text, ensure_ascii=False)


def _call_rules(name: str, function: Mapping[str, Any], rules: JsonRules) -> list[str]:
    schema, where = function.get("parameters") or {}, f"tools.{function['name']}.parameters"
    listed = _parameters(schema, where)
    required = set(schema.get("required") or ())
    opening = quoted(f'invoke name="{function["name"]}">\n')
    lines = [f'{name}: "<" mark {opening} {name}_none0 "</" mark "invoke>"']
    for place, (key, one) in enumerate(listed.items()):
        lines.append(f"{name}_p{place}: {_parameter(key, one, schema, f'{where}.properties.{key}', rules)}")
    return lines + _optional_in_order(name, [key in required for key in listed])


def _optional_in_order(name: str, required: Sequence[bool]) -> list[str]:
    """Parameters in their order, each on a line of its own; where none is given, the line stays empty.

    none_i: from parameter i on, where none was given before; rest_i: where one was.
    """
    count = len(required)
    lines = [f'{name}_rest{count}: ""', f'{name}_none{count}: "\\n"']
    for place, is_required in enumerate(required):
        one, rest = f'{name}_p{place} "\\n" {name}_rest{place + 1}', f"{name}_rest{place + 1}"
        skipped, nothing = ("", "") if is_required else (f" | {rest}", f" | {name}_none{place + 1}")
        lines += [f"{name}_rest{place}: {one}{skipped}", f"{name}_none{place}: {one}{nothing}"]
    return lines


def _parameter(key: str, one: Any, root: Mapping[str, Any], where: str, rules: JsonRules) -> str:
    if not UNREADABLE.isdisjoint(key) or not key:
        raise InvalidRequest("a parameter's name may not be empty or hold quotes or lines", param=where)
    value, is_string = _plain_string(one), "true"
    if value is None:
        defined = {name: root[name] for name in DEFINITIONS if name in root}
        schema = one if isinstance(one, dict) else {}
        value, is_string = rules.rule({**schema, **defined}, where) + ' "</"', "false"
    opening = quoted(f'parameter name="{key}" string="{is_string}">')
    return f'"<" mark {opening} {value} mark "parameter>"'


def _plain_string(schema: Any) -> str | None:
    """What stands unescaped for a string and the `</` after it; None where JSON says it better."""
    if not isinstance(schema, dict) or not NARROWING.isdisjoint(schema):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is None:
        return "TEXT" if schema.get("type") == "string" else None
    if not isinstance(values, list) or not values or schema.get("type", "string") != "string":
        return None
    if not all(isinstance(value, str) for value in values):
        return None
    return f"({' | '.join(quoted(value + TAG_END) for value in values)})"


def _parameters(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every parameter by name, those that are required without being described after the others."""
    for keyword in NOT_LISTED:
        if keyword in schema:
            raise InvalidRequest(
                f"{keyword} is not supported for arguments that must fit: list them as properties",
                param=f"{where}.{keyword}",
                code="unsupported_parameter",
            )
    described = schema.get("properties") or {}
    names = schema.get("required") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest("required must be a list of names", param=f"{where}.required")
    return {**described, **{name: {} for name in names if name not in described}}
