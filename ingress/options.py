"""What every kind of request has in common, each bounded.

The pydantic bases of the bodies in ingress/schema.py: strict types, unknown fields set aside, and the options
that chat and text completions share. Knows nothing of prompts.

A field that would change the answer and is not served yet is refused, never ignored. Fields that nobody
here knows are accepted and named in the `x-ignored-fields` header.

Errors: InvalidRequest (ingress/errors.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ingress.constraints import Choices, GrammarText, Regex, Schema, StructuredOutputs
from ingress.errors import InvalidRequest

MAX_STOPS = 4
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 128
MAX_CHOICES = 16  # of one prompt
MAX_SALT_CHARS = 128
MAX_BIASES = 1024
MOST_BIAS = 100.0
MAX_INT32 = 2**31 - 1
MAX_DEADLINE_S = 86400.0

NOT_SERVED = frozenset(
    (
        "allowed_token_ids",
        "audio",
        "bad_words",
        "chat_template",
        "documents",
        "function_call",
        "functions",
        "prompt_embeds",
        "prompt_logprobs",
        "use_beam_search",
    )
)
SHOWN_FIELD = re.compile(r"[^A-Za-z0-9_.-]")
MAX_SHOWN_FIELDS = 16
MAX_SHOWN_CHARS = 64
TOKEN_KEY = re.compile(r"0|[1-9][0-9]{0,9}")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidRequest("stop must be a string or a list of strings", param="stop")
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"stop has {len(stops)} strings: at most {MAX_STOPS}", param="stop")
    if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise InvalidRequest(f"each stop string must have 1 to {MAX_STOP_CHARS} characters", param="stop")
    return tuple(stops)


def _biases(value: Any) -> dict[int, float] | None:
    """OpenAI's keys are token ids as strings."""
    if value is None:
        return None
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise InvalidRequest(f"logit_bias must be an object of at most {MAX_BIASES} keys", param="logit_bias")
    for key, bias in value.items():
        if not TOKEN_KEY.fullmatch(key):
            raise InvalidRequest("a key of logit_bias must be a token id", param="logit_bias")
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not abs(bias) <= MOST_BIAS:
            raise InvalidRequest("a bias must be a number from -100 to 100", param="logit_bias")
    return {int(key): float(bias) for key, bias in value.items()}


def header_name(name: str) -> str:
    """A client's name for something, fit for a header."""
    return SHOWN_FIELD.sub("_", name)[-MAX_SHOWN_CHARS:]


def _unknown(model: BaseModel) -> Iterator[str]:
    """The unknown fields of `model`, and of what it holds by their paths."""
    yield from model.model_extra or {}
    for field in type(model).model_fields:
        if isinstance(inner := getattr(model, field), BaseModel):
            yield from (f"{field}.{name}" for name in _unknown(inner))


def _off(value: Any) -> bool:
    """Whether `value` asks for nothing."""
    return value is None or value is False or value in ("", [], {})


Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]
StopTokenIds = Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True)]
Count = Annotated[int, Field(ge=1, le=MAX_INT32)]


class Body(BaseModel):
    """Strict types (no "1" for 1, no 1 for true); unknown fields are kept aside."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, hide_input_in_errors=True)

    @property
    def ignored_fields(self) -> str:
        """The names of the unknown fields, fit for a header: bounded, plain characters."""
        names = sorted({*_unknown(self)} - NOT_SERVED)
        shown = [header_name(name) for name in names[:MAX_SHOWN_FIELDS]]
        return ", ".join(shown + (["..."] if len(names) > MAX_SHOWN_FIELDS else []))


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Options(Body):
    """What chat and text completions have in common."""

    prompt_field: ClassVar[str] = "prompt"

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT32)] | None = None
    min_p: Ratio | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    logit_bias: Annotated[dict[int, float] | None, BeforeValidator(_biases)] = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    stop_token_ids: StopTokenIds | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT32)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    cache_salt: Annotated[str, Field(max_length=MAX_SALT_CHARS)] | None = None
    priority: Annotated[int, Field(ge=-MAX_INT32, le=MAX_INT32)] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | Schema | None = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S, allow_inf_nan=False)] | None = None

    @property
    def is_batch(self) -> bool:
        """Two dialects, two classes: vLLM's priority is later the higher it is, OpenAI's flex yields."""
        return self.service_tier == "flex" or (self.priority or 0) > 0

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Usage so far in every chunk; as in vLLM, only where usage is wanted at all."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def guided(self) -> dict[str, Any]:
        """What vLLM's older names ask for."""
        names = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def wanted_tokens(self) -> int | None:
        """The most tokens to make, None: as many as fit."""
        return self.max_tokens

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        for name in sorted((self.model_extra or {}).keys() & NOT_SERVED):
            if not _off((self.model_extra or {})[name]):
                raise InvalidRequest(f"{name} is not supported yet", param=name, code="unsupported_parameter")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only allowed with stream: true", param="stream_options")
        if self.wanted_tokens is not None and (self.min_tokens or 0) > self.wanted_tokens:
            raise InvalidRequest(
                f"min_tokens is {self.min_tokens}: over max_tokens {self.wanted_tokens}", param="min_tokens"
            )
        return self
