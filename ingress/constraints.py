"""What a request wants its answer held to.

The several ways of saying it (OpenAI's response_format and tool_choice, vLLM's structured_outputs and
guided_*) as one grammar. Knows nothing of how a grammar is enforced (model/grammar.py) and whether it can be
(ingress/compiler.py).

Errors: InvalidRequest (ingress/errors.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json

from ingress.call_grammar import calls_rules, quoted
from ingress.errors import InvalidRequest
from ingress.json_grammar import JsonRules
from model.sampling import FOREIGN

MAX_GRAMMAR_CHARS = 1 << 16
MAX_REGEX_CHARS = 1 << 12
MAX_CHOICES = 1000
MAX_CHOICE_CHARS = 1 << 10
FORMAT_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
LAST_DOLLAR = re.compile(r"(?:[^\\]|\\.)*\$", re.DOTALL)

Schema = dict[str, Any]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARS)]],
    Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
]
Regex = Annotated[str, Field(min_length=1, max_length=MAX_REGEX_CHARS)]
GrammarText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


class JsonSchemaFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True, hide_input_in_errors=True)
    name: Annotated[str, Field(pattern=FORMAT_NAME)]
    description: str | None = None
    schema_: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """OpenAI's."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, hide_input_in_errors=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @property
    def as_sent(self) -> dict[str, Any]:
        """For the prompt, which tells the model what is wanted."""
        return self.model_dump(by_alias=True, exclude_none=True)

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise InvalidRequest(
                "json_schema belongs to type json_schema, which needs it", param="response_format.json_schema"
            )
        return self


class StructuredOutputs(BaseModel):
    """vLLM's: one of the ways. Its two switches say what is done anyway."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)
    json_: Annotated[str | Schema | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None

    @property
    def ways(self) -> dict[str, Any]:
        """Those that are given, by their names."""
        found = {
            "json": self.json_,
            "json_object": self.json_object or None,
            "regex": self.regex,
            "choice": self.choice,
            "grammar": self.grammar,
        }
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """grammar: in Lark's syntax, or a client's own. rule: what all of it is, None of a client's own. param:
    the field that asked for it. ignored: its parts that are not enforced, by their paths.
    """

    grammar: str
    rule: str | None = None
    param: str | None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolTerms:
    """The tools that may be called, and whether one must be: `names` those of which, None where none has to
    be."""

    functions: Sequence[Mapping[str, Any]]
    required: Sequence[str] | None
    is_one: bool
    mark_id: int | None


def content_constraint(
    response_format: ResponseFormat | None,
    structured: StructuredOutputs | None,
    guided: Mapping[str, Any],
) -> Constraint | None:
    """What the text is held to, by whichever one field says so."""
    wishes: list[tuple[str, str, Any, bool]] = []  # (param, way, value, whether it is strict)
    if response_format is not None and response_format.type != "text":
        described = response_format.json_schema
        if described is None:
            wishes.append(("response_format", "json_object", True, False))
        else:
            at = "response_format.json_schema.schema"
            wishes.append((at, "json", described.schema_, bool(described.strict)))
    if structured is not None:
        ways = structured.ways.items()
        wishes += [(f"structured_outputs.{way}", way, value, False) for way, value in ways]
    wishes += [(name, name.removeprefix("guided_"), value, False) for name, value in guided.items()]
    if not wishes:
        return None
    if len(wishes) > 1:
        names = " and ".join(param for param, *_ in wishes[:2])
        raise InvalidRequest(f"{names} both say what the text must be: give one", param=wishes[1][0])
    param, way, value, is_strict = wishes[0]
    rules = JsonRules(is_strict=is_strict)
    if way == "grammar":
        return Constraint(grammar=FOREIGN + value, param=param)
    rule = _rule(way, value, param, rules)
    return Constraint(grammar=f"start: {rule}\n", rule=rule, param=param, ignored=tuple(rules.ignored))


def with_calls(content: Constraint | None, tools: ToolTerms) -> Constraint | None:
    """What the whole answer is held to: the text or calls where both may come, calls where one must."""
    if not tools.functions or (content is None and tools.required is None):
        return content
    if tools.mark_id is None:
        raise InvalidRequest("this model's vocabulary has no token for tool calls", param="tools")
    functions = [one for one in tools.functions if tools.required is None or one["name"] in tools.required]
    rules = JsonRules(is_strict=False)
    calls = calls_rules(functions, tools.mark_id, rules, is_one=tools.is_one)
    if tools.required is not None:
        return Constraint(
            grammar=_joined(["start: calls", *calls]), param="tool_choice", ignored=tuple(rules.ignored)
        )
    assert content is not None, "asked before"
    if content.rule is None:
        raise InvalidRequest(
            "a grammar leaves no room for tools: set tool_choice to none", param=content.param
        )
    grammar = _joined(["start: text | calls", f"text: {content.rule}", *calls])
    return Constraint(grammar=grammar, param=content.param, ignored=(*content.ignored, *rules.ignored))


def _rule(way: str, value: Any, param: str, rules: JsonRules) -> str:
    match way:
        case "json":
            return rules.rule(_schema(value, param), param)
        case "json_object":
            return rules.rule({"type": "object"}, param)
        case "choice":
            return " | ".join(map(quoted, value))
        case _:
            return f"/{_regex(value)}/"


def _schema(value: Any, param: str) -> Schema:
    """vLLM takes a schema as text, too."""
    if isinstance(value, str):
        try:
            value = from_json(value, allow_inf_nan=False)
        except ValueError:
            raise InvalidRequest("must be a JSON schema, or one as text", param=param) from None
    if not isinstance(value, dict):
        raise InvalidRequest("must be a JSON schema", param=param)
    return value


def _regex(pattern: str) -> str:
    """As the grammar writes it. The whole text must match, so the anchors around it say nothing more."""
    pattern = pattern.removeprefix("^")
    if LAST_DOLLAR.fullmatch(pattern):
        pattern = pattern[:-1]
    return re.sub(
        r"\\.|/|\n", lambda found: {"/": "\\/", "\n": "\\n"}.get(found[0], found[0]), pattern, flags=re.S
    )


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
