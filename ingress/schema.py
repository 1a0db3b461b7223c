"""The fields of a request, each bounded.

Pydantic models of /v1/chat/completions, /v1/completions, /tokenize and /detokenize. Knows nothing of token
ids, of the model served or of its context: ingress/desk.py checks against those.

Errors: InvalidRequest (ingress/errors.py).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ingress.constraints import ResponseFormat
from ingress.errors import InvalidRequest, from_validation
from ingress.options import MAX_INT32, Body, Count, Options, TokenId
from ingress.tools import check_tool_choice, check_tools

MAX_MESSAGES = 4096
MAX_PROMPTS = 1024
MAX_TOP_LOGPROBS = 20
Messages = Annotated[
    list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
]  # their inside: ingress/turns.py
COMPLETION_MAX_TOKENS = 16  # OpenAI's default for /v1/completions


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """One prompt or many, as text or as ids: always as a list of prompts."""
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise InvalidRequest("prompt must be text, token ids, or a list of either", param="prompt")
    if len(value) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt has {len(value)} prompts: at most {MAX_PROMPTS}", param="prompt")
    if not all(value):
        raise InvalidRequest("a prompt is empty", param="prompt")
    if all(isinstance(prompt, str) for prompt in value):
        return value
    if all(_is_ids(prompt) for prompt in value):
        return value
    raise InvalidRequest("prompt mixes kinds: all texts, or all lists of token ids", param="prompt")


def _is_ids(value: Any) -> bool:
    """Whether `value` is a non-empty list of whole numbers (true is none, though Python says so)."""
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


class TemplateSwitches(BaseModel):
    """chat_template_kwargs: the two names by which other servers switch thinking, and nothing else."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    thinking: bool | None = None
    enable_thinking: bool | None = None


class Thinking(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    type: Literal["enabled", "disabled"]


class Conversation(Body):
    """What makes a chat's prompt."""

    messages: Messages | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: TemplateSwitches | None = None
    thinking: Thinking | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    continue_final_message: bool | None = None
    response_format: ResponseFormat | None = None

    @property
    def prompt_messages(self) -> list[dict[str, Any]]:
        """continue_final_message is vLLM's way to say what DeepSeek says by the message's own `prefix`."""
        messages = self.messages or []
        if not self.continue_final_message:
            return messages
        return [*messages[:-1], {**messages[-1], "prefix": True}]

    @property
    def prompt_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the model is to see: none where none may be called."""
        return None if self.tool_choice == "none" else self.tools

    @property
    def required_functions(self) -> list[str] | None:
        """Those of which one must be called; None where none has to be."""
        if isinstance(self.tool_choice, dict):
            return [self.tool_choice["function"]["name"]]
        return [one["name"] for one in self.functions] if self.tool_choice == "required" else None

    @property
    def functions(self) -> list[dict[str, Any]]:
        """All that may be called, those that a message brings along included."""
        if self.tool_choice == "none":
            return []
        brought = [tool for _, message in self._bringing_tools() for tool in message["tools"]]
        return [tool["function"] for tool in [*(self.tools or []), *brought]]

    @property
    def wants_thinking(self) -> bool:
        """The three dialects as one flag; `_check_conversation` has seen that they agree."""
        return any(self._thinking_votes())

    @model_validator(mode="after")
    def _check_conversation(self) -> Self:
        if len(set(self._thinking_votes())) > 1:
            raise InvalidRequest("thinking is switched both on and off", param="thinking")
        for index, message in enumerate(self.messages or []):
            if message.get("content") in (None, []) and not _may_be_silent(message):
                raise InvalidRequest("content is missing", param=f"messages[{index}].content")
        for index, message in self._bringing_tools():
            check_tools(message["tools"], f"messages[{index}].tools")
        check_tools(self.tools)
        check_tool_choice(self.tool_choice, self.tools)
        return self

    def _bringing_tools(self) -> list[tuple[int, dict[str, Any]]]:
        """The format's own way to give tools: in a message."""
        return [
            (index, message)
            for index, message in enumerate(self.messages or [])
            if message.get("role") in ("system", "developer") and message.get("tools") is not None
        ]

    def _thinking_votes(self) -> list[bool]:
        switches = self.chat_template_kwargs
        votes = [switches.thinking, switches.enable_thinking] if switches is not None else []
        votes.append(None if self.thinking is None else self.thinking.type == "enabled")
        votes.append(None if self.reasoning_effort is None else self.reasoning_effort != "none")
        return [vote for vote in votes if vote is not None]


def _may_be_silent(message: dict[str, Any]) -> bool:
    """Whether `message` says something without content."""
    said = ("tool_calls", "reasoning_content", "reasoning")
    return message.get("role") == "assistant" and any(message.get(name) for name in said)


class ChatRequest(Conversation, Options):
    prompt_field: ClassVar[str] = "messages"

    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only allowed with logprobs: true", param="top_logprobs")
        return self


class CompletionRequest(Options):
    prompt: Annotated[list[Any], BeforeValidator(_prompts)]  # list[str] or list[list[int]]
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT32)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None

    @property
    def wanted_tokens(self) -> int | None:
        return COMPLETION_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def scores_prompt(self) -> bool:
        return bool(self.echo) and self.logprobs is not None

    @model_validator(mode="after")
    def _check_completion(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequest("best_of is not supported: only where it equals n", param="best_of")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("max_tokens is 0: at least 1, unless echo is true", param="max_tokens")
        if self.scores_prompt and self.suffix:
            raise InvalidRequest("with suffix, the logprobs of the prompt are not told", param="echo")
        if self.suffix and not all(isinstance(prompt, str) for prompt in self.prompt):
            raise InvalidRequest("suffix needs a prompt of text, not of token ids", param="suffix")
        return self


class TokenizeRequest(Conversation):
    """Text or a chat, never both."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _check_tokenize(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give either prompt or messages", param="prompt")
        return self


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


B = TypeVar("B", bound=Body)


def parse_body(fields: dict[str, Any], kind: type[B]) -> B:
    """`fields` as a request of `kind`; raises InvalidRequest that names the first field at fault."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error) from None
