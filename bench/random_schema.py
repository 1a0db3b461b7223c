"""JSON schemas drawn at random, each with bounded answers.

Every string, number and list in them has an end, so that even a model without sense must come to one. Knows
nothing of grammars: what may be in them is what docs/api.md says is enforced.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

Schema = dict[str, Any]

DEPTH = 2
FORMATS = ("date", "time", "uuid", "ipv4")
PATTERNS = ("^[a-c]{1,4}$", "[0-9]{3}-[0-9]{2}", "^(red|green) [A-Z]$", r"^\d{1,3}\.\d{2}$")
VALUES: tuple[Any, ...] = ("yes", "no", 7, -3.5, None, True, [], {"a": 1}, 'quo"te', "\u00e9\n")
NAMES = ("id", "name", "kind", "a b", "\u00fc", 'q"', "x/y", "$ref")


def random_schema(random: Random) -> Schema:
    """An object's, like most of those in use; some refer to definitions."""
    root = _object(random, DEPTH)
    if random.random() < 0.3:
        root["$defs"] = {"part": _any(random, 1)}
        root["properties"]["part"] = {"$ref": "#/$defs/part"}
    return root


def _any(random: Random, depth: int) -> Schema:
    kinds: list[Callable[[Random, int], Schema]] = [_string, _string, _integer, _number, _plain, _listed]
    if depth:
        kinds += [_object, _array, _tuple, _either]
    return random.choice(kinds)(random, depth - 1)


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(NAMES, random.randint(0, 3))
    return {
        "type": "object",
        "properties": {name: _any(random, depth) for name in names},
        "required": [name for name in names if random.random() < 0.6],
        "additionalProperties": False,
    }


def _array(random: Random, depth: int) -> Schema:
    least = random.randint(0, 2)
    return {
        "type": "array",
        "items": _any(random, depth),
        "minItems": least,
        "maxItems": least + random.randint(0, 2),
    }


def _tuple(random: Random, depth: int) -> Schema:
    items = [_any(random, depth) for _ in range(random.randint(1, 2))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _either(random: Random, depth: int) -> Schema:
    return {"anyOf": [_any(random, depth) for _ in range(2)]}


def _string(random: Random, _: int) -> Schema:
    match random.randrange(4):
        case 0:
            return {"type": "string", "format": random.choice(FORMATS)}
        case 1:
            pattern = random.choice(PATTERNS)
            return {"type": "string", "pattern": pattern, "maxLength": 12}
        case _:
            least = random.randint(0, 2)
            return {"type": "string", "minLength": least, "maxLength": least + random.randint(0, 4)}


def _integer(random: Random, _: int) -> Schema:
    least = random.randint(-100, 100)
    schema: Schema = {"type": "integer", "minimum": least, "maximum": least + random.randint(5, 1000)}
    if random.random() < 0.2:
        schema["multipleOf"] = random.randint(2, 5)
    return schema


def _number(random: Random, _: int) -> Schema:
    """A bound on the digits of a fraction is not to be had, so the fraction is a quarter."""
    return {"type": "number", "enum": [random.randint(-50, 50) / 4 for _ in range(3)]}


def _plain(random: Random, _: int) -> Schema:
    return {"type": random.choice(["boolean", "null", ["boolean", "null"]])}


def _listed(random: Random, _: int) -> Schema:
    if random.random() < 0.3:
        return {"const": random.choice(VALUES)}
    return {"enum": random.sample(VALUES, random.randint(1, 4))}
