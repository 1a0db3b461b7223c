"""A parameter's text as a JSON value of the type wanted.

A model writes strings as they are and all else as JSON, and says which; its tool's schema has the last word.
Only the outermost type is looked at: what is inside an object is JSON already. Knows nothing of DSML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Types = frozenset[str]

ANYTHING: Types = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
MAX_VALUES = 1000  # of an enum that are looked at
PYTHON_SPELLINGS = {"True": True, "False": False, "None": None}


def types_of(schema: Any, root: Any) -> Types:
    """The JSON types that `schema`, a part of `root`, lets a value have; all where it does not say."""
    found: set[str] = set()
    seen: set[int] = set()  # references may go in circles, and choices multiply
    pending = [schema]
    while pending:
        node = pending.pop()
        if not isinstance(node, Mapping):
            return ANYTHING
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node.get("$ref"), str):
            pending.append(_pointed_at(node["$ref"], root))
        elif "type" in node:
            kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
            found.update(kind for kind in kinds if isinstance(kind, str))
        elif "const" in node or isinstance(node.get("enum"), list):
            values = [node["const"]] if "const" in node else node["enum"][:MAX_VALUES]
            found.update(*map(_types_of_value, values))
        elif choices := node.get("anyOf") or node.get("oneOf"):
            pending += choices if isinstance(choices, list) else [None]
        else:
            return ANYTHING
    return frozenset(found) or ANYTHING


def coerced(text: str, types: Types, *, is_string: bool | None) -> Any:
    """`text` as a value; is_string: what the model says it is, None where it does not.

    A string stays one wherever the schema allows it. What fits no type stays what the model said.
    """
    if is_string is None:
        is_string = "string" in types and types != ANYTHING
    if is_string and "string" in types:
        return text
    try:
        value = _parsed(text)
    except ValueError:
        return text
    for fitted in (value, _as_integer(value)):
        if _types_of_value(fitted) & types:
            return fitted
    return text if is_string or "string" in types else value


def _parsed(text: str) -> Any:
    """JSON (or a constant in Python's spelling) that can be written again; raises ValueError."""
    stripped = text.strip()
    if stripped in PYTHON_SPELLINGS:
        return PYTHON_SPELLINGS[stripped]
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # no NaN, no half character
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _types_of_value(value: Any) -> Types:
    match value:
        case None:
            return frozenset(("null",))
        case bool():
            return frozenset(("boolean",))
        case int():
            return frozenset(("integer", "number"))
        case float():
            return frozenset(("number",))
        case str():
            return frozenset(("string",))
        case list():
            return frozenset(("array",))
        case _:
            return frozenset(("object",))


def _pointed_at(reference: str, root: Any) -> Any:
    """The schema at `reference`, such as #/$defs/name; None where there is none."""
    node = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
