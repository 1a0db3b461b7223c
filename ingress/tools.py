"""The tools of a chat: are they sound?

Names, number and parameter schemas are checked before they reach a prompt. Knows nothing of how the model
is told (ingress/encoding.py). A schema is only ever read: no reference is followed, nothing is fetched.

Errors: InvalidRequest (ingress/errors.py).
"""

from __future__ import annotations

import re
from typing import Any

from ingress.errors import InvalidRequest

MAX_TOOLS = 128
MAX_SCHEMA_DEPTH = 64
MAX_SCHEMA_NODES = 10_000
MAX_PATTERN_CHARS = 512
MAX_PATH_CHARS = 200  # of a place in an error; also keeps long names from being copied at every depth
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
JSON_TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
# Keywords whose value maps free names to schemas: those names are not keywords.
NAMED_SCHEMAS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
PLAIN_VALUES = frozenset(("enum", "const", "default", "examples", "example"))


def check_tools(tools: Any, where: str = "tools") -> None:
    """Raises InvalidRequest for what OpenAI's `tools` may not be."""
    if tools is None:
        return
    if not isinstance(tools, list):
        raise InvalidRequest("tools must be a list", param=where)
    if not 0 < len(tools) <= MAX_TOOLS:
        raise InvalidRequest(f"tools has {len(tools)} entries: 1 to {MAX_TOOLS}", param=where)
    known: set[str] = set()
    for index, tool in enumerate(tools):
        name = _checked_name(tool, f"{where}[{index}]")
        if name in known:
            raise InvalidRequest(
                f"two functions have the name {name}", param=f"{where}[{index}].function.name"
            )
        known.add(name)


def check_tool_choice(choice: str | dict[str, Any] | None, tools: list[Any] | None) -> None:
    """Raises InvalidRequest."""
    if choice is None or choice == "none":
        return
    if tools is None:
        raise InvalidRequest("tool_choice is only allowed with tools", param="tool_choice")
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or name not in {tool["function"]["name"] for tool in tools}:
            raise InvalidRequest("tool_choice names none of the tools", param="tool_choice")
    elif choice not in ("auto", "required"):
        raise InvalidRequest("tool_choice must be none, auto, required or a function", param="tool_choice")


def check_schema(schema: Any, where: str) -> None:
    """Raises InvalidRequest unless `schema` is a JSON schema of bounded size without outside references."""
    pending: list[tuple[Any, str, int]] = [(schema, where, 0)]
    for _ in range(MAX_SCHEMA_NODES):
        if not pending:
            return
        node, path, depth = pending.pop()
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidRequest(f"a schema nests over {MAX_SCHEMA_DEPTH} levels deep", param=where)
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise InvalidRequest("a schema must be an object", param=path)
        _check_keywords(node, path)
        pending.extend((child, _join(path, name), depth + 1) for name, child in _children(node, path))
    raise InvalidRequest(f"a schema has over {MAX_SCHEMA_NODES} parts", param=where)


def _checked_name(tool: Any, where: str) -> str:
    """Of the function of a tool that is sound."""
    if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict):
        raise InvalidRequest("a tool must be an object with a function", param=where)
    if tool.get("type") != "function":
        raise InvalidRequest("a tool's type must be function", param=f"{where}.type")
    function = tool["function"]
    name = function.get("name")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise InvalidRequest("a function name has 1 to 64 of A-Z a-z 0-9 _ -", param=f"{where}.function.name")
    if not isinstance(function.get("description"), str | None):
        raise InvalidRequest("a description must be a string", param=f"{where}.function.description")
    if function.get("parameters") is not None:
        parameters = function["parameters"]
        if not isinstance(parameters, dict):
            raise InvalidRequest("parameters must be an object", param=f"{where}.function.parameters")
        check_schema(parameters, f"{where}.function.parameters")
    return name


def _check_keywords(node: dict[str, Any], path: str) -> None:
    types = node.get("type", [])
    for name in types if isinstance(types, list) else [types]:
        if not isinstance(name, str) or name not in JSON_TYPES:
            raise InvalidRequest(f"type must be one of {', '.join(sorted(JSON_TYPES))}", param=f"{path}.type")
    pattern = node.get("pattern")
    if pattern is not None:
        _check_pattern(pattern, f"{path}.pattern")
    reference = node.get("$ref", "#")
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise InvalidRequest("$ref may only point into its own schema (#...)", param=f"{path}.$ref")


def _check_pattern(pattern: Any, path: str) -> None:
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARS:
        raise InvalidRequest(
            f"pattern must be a string of at most {MAX_PATTERN_CHARS} characters", param=path
        )
    try:
        re.compile(pattern)  # compiled to see that it is one; never matched against anything
    except (re.error, OverflowError, RecursionError) as error:
        if "escape" in str(error):  # \p{L} and its like: sound in a schema, unknown to Python
            return
        raise InvalidRequest("pattern is not a regular expression", param=path) from None


def _children(node: dict[str, Any], path: str) -> list[tuple[str, Any]]:
    """The schemas inside one schema, wherever a keyword may hold one."""
    found: list[tuple[str, Any]] = []
    for keyword, value in node.items():
        if keyword in PLAIN_VALUES:
            continue
        if keyword in NAMED_SCHEMAS:
            if not isinstance(value, dict):
                raise InvalidRequest(f"{keyword} must be an object", param=f"{path}.{keyword}")
            found.extend((_join(keyword, name), child) for name, child in value.items())
        elif isinstance(value, dict):
            found.append((keyword, value))
        elif isinstance(value, list):
            found.extend((keyword, child) for child in value if isinstance(child, dict))
    return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name[:MAX_PATH_CHARS]}"[:MAX_PATH_CHARS]
