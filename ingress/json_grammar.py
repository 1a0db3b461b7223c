"""JSON schemas as rules of a grammar.

A client's schema, checked and cut down to what is enforced, in the one spelling that json.dumps has: no white
space but after commas and colons, so that no model can spin in blanks. Knows nothing of requests and of the
library that reads the rules.

Two ways with keywords that cannot be enforced. Strict: they are refused by name. Otherwise: they are left
out, and told. Objects that list their properties and do not say that others may come have no others, where no
combination of schemas could mean another part of the same object.

Errors: InvalidRequest (ingress/errors.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ingress.errors import InvalidRequest
from ingress.tools import NAMED_SCHEMAS, check_schema

MAX_ENUM_VALUES = 1000  # of a schema in all, as OpenAI's
MAX_RULE_CHARS = 1 << 16  # of a request in all
SPELLING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
COMBINING = frozenset(("allOf", "anyOf", "oneOf", "$ref"))
OBJECT_PARTS = frozenset(("properties", "patternProperties", "additionalProperties", "required"))
VALUES = frozenset(("enum", "const"))
ENFORCED = frozenset(
    (
        *("type", "enum", "const", "$ref", "$defs", "definitions", "anyOf", "oneOf", "allOf"),
        *("properties", "required", "additionalProperties", "patternProperties"),
        *("minProperties", "maxProperties", "items", "prefixItems", "minItems", "maxItems"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    )
)
NOT_ENFORCED = frozenset(
    (
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
        *("propertyNames", "dependentRequired", "dependentSchemas", "dependencies"),
        *("unevaluatedItems", "unevaluatedProperties", "additionalItems", "$dynamicRef", "$recursiveRef"),
        *("contentEncoding", "contentMediaType"),
    )
)
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)


@dataclass(kw_only=True, slots=True)
class JsonRules:
    """Makes rules of schemas. ignored: the keywords left out so far, by their paths. num_chars: of the rules
    so far."""

    is_strict: bool
    ignored: list[str] = field(default_factory=list)
    num_chars: int = 0

    def rule(self, schema: dict[str, Any], where: str) -> str:
        """What matches the values that `schema` describes; `where` names it in errors."""
        check_schema(schema, where)
        if sum(_num_values(schema)) > MAX_ENUM_VALUES:
            raise InvalidRequest(f"a schema lists over {MAX_ENUM_VALUES} values", param=where)
        kept = self._kept(schema, where, is_closing=not _combines(schema))
        kept["x-guidance"] = SPELLING if self.is_strict else {**SPELLING, "coerce_one_of": True}
        text = json.dumps(kept, ensure_ascii=False)
        self.num_chars += len(text)
        if self.num_chars > MAX_RULE_CHARS:  # definitions are repeated wherever they may be meant
            raise InvalidRequest(f"the schemas make over {MAX_RULE_CHARS} characters of rules", param=where)
        return f"%json {text}"

    def _kept(self, node: Any, path: str, *, is_closing: bool) -> Any:
        if not isinstance(node, dict):
            return node
        kept: dict[str, Any] = {}
        for keyword, value in node.items():
            at = f"{path}.{keyword}"
            if keyword in NOT_ENFORCED or (keyword == "format" and not _is_known_format(value)):
                self._leave_out(keyword, value, at)
            elif keyword in VALUES:
                kept[keyword] = value
            elif keyword in NAMED_SCHEMAS:
                kept[keyword] = {
                    name: self._kept(child, f"{at}.{name}", is_closing=is_closing)
                    for name, child in value.items()
                }
            elif keyword in ENFORCED:
                kept[keyword] = self._kept_inside(value, at, is_closing=is_closing)
        if is_closing and "properties" in kept and "patternProperties" not in kept:
            kept.setdefault("additionalProperties", False)
        return kept

    def _kept_inside(self, value: Any, path: str, *, is_closing: bool) -> Any:
        if isinstance(value, list):
            return [
                self._kept(child, f"{path}[{place}]", is_closing=is_closing)
                for place, child in enumerate(value)
            ]
        return self._kept(value, path, is_closing=is_closing)

    def _leave_out(self, keyword: str, value: Any, path: str) -> None:
        if self.is_strict and value is not False:
            what = f"format {value!r:.40}" if keyword == "format" else keyword
            raise InvalidRequest(
                f"{what} cannot be enforced, so a strict schema must not have it",
                param=path,
                code="unsupported_parameter",
            )
        self.ignored.append(path)


def _is_known_format(value: Any) -> bool:
    return isinstance(value, str) and value in FORMATS


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema in `schema`, itself included; values that look like schemas do no harm here."""
    pending = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            yield node
            pending.extend(child for keyword, child in node.items() if keyword not in VALUES)
        elif isinstance(node, list):
            pending.extend(node)


def _combines(schema: dict[str, Any]) -> bool:
    """Whether several schemas may describe one object together."""
    return any(
        "allOf" in node or (not COMBINING.isdisjoint(node) and not OBJECT_PARTS.isdisjoint(node))
        for node in _nodes(schema)
    )


def _num_values(schema: dict[str, Any]) -> Iterator[int]:
    return (len(node["enum"]) for node in _nodes(schema) if isinstance(node.get("enum"), list))
