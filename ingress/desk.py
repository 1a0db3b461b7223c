"""From the bytes of a body to an order.

Pure: may run on any thread. Knows nothing of HTTP and of how answers are written.

Errors: InvalidRequest, ContextTooLong, ModelNotFound (ingress/errors.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ingress.body import parse_object
from ingress.constraints import Constraint, ToolTerms, content_constraint, with_calls
from ingress.dsml import schemas_of
from ingress.encoding import opens_reasoning
from ingress.errors import ContextTooLong, InvalidRequest, ModelNotFound
from ingress.messages_request import CountRequest, MessagesRequest
from ingress.options import MAX_SHOWN_FIELDS, Options, header_name
from ingress.order import Order
from ingress.output import OutputOptions
from ingress.prompts import Prompts, segments_of
from ingress.responses_request import ResponsesRequest, own_name
from ingress.samplings import sampling_of
from ingress.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, parse_body
from ingress.specials import DSML, END_THINK
from ingress.tokens import Tokenizer

MAX_SEQUENCES = 1024  # of one request: prompts times n

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Told(Generic[T]):
    """What needs no engine, and the names of the fields that it did not look at."""

    value: T
    ignored_fields: str


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderDesk:
    """Turns bodies into orders for one model. aliases: more names that it is asked for by."""

    tokenizer: Tokenizer
    model_name: str
    context_tokens: int
    aliases: Sequence[str] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """That requests may call the model by; answers call it by the first."""
        return tuple(dict.fromkeys((self.model_name, *self.aliases)))

    @property
    def _prompts(self) -> Prompts:
        return Prompts(tokenizer=self.tokenizer)

    def chat(self, body: bytes) -> Order:
        return self._chat(parse_body(parse_object(body), ChatRequest))

    def messages(self, body: bytes) -> Order:
        """Of a request to Anthropic's Messages API."""
        request = parse_body(parse_object(body), MessagesRequest)
        order = self._chat(parse_body(request.as_chat(), ChatRequest))
        return replace(order, ignored_fields=_listed(request.ignored_fields, order.ignored_fields))

    def responses(self, body: bytes) -> tuple[Order, dict[str, Any]]:
        """Of a request to OpenAI's Responses API, with what the answer repeats of it."""
        request = parse_body(parse_object(body), ResponsesRequest)
        try:
            order = self._chat(parse_body(request.as_chat(), ChatRequest))
        except InvalidRequest as error:
            error.param = own_name(error.param)
            raise
        constraint = order.constraint
        if constraint is not None:
            constraint = replace(constraint, param=own_name(constraint.param))
        ignored = _listed(request.ignored_fields, order.ignored_fields)
        return replace(order, ignored_fields=ignored, constraint=constraint), request.told()

    def count_tokens(self, body: bytes) -> Told[int]:
        """Of the prompt that `messages` would make."""
        request = parse_body(parse_object(body), CountRequest)
        self.check_model(request.model)
        ids = self._prompts.of_segments(segments_of(parse_body(request.as_chat(), ChatRequest)))
        return Told(len(ids), request.ignored_fields)

    def _chat(self, request: ChatRequest) -> Order:
        self.check_model(request.model)
        segments = segments_of(request)
        is_one_call = request.parallel_tool_calls is False
        tools = ToolTerms(
            functions=request.functions,
            required=request.required_functions,
            is_one=is_one_call,
            mark_id=self.tokenizer.special_id(DSML.text),
        )
        content = content_constraint(request.response_format, request.structured_outputs, request.guided)
        return self._order(
            request,
            [self._prompts.of_segments(segments)],
            num_logprobs=request.num_logprobs,
            constraint=with_calls(content, tools),
            output=OutputOptions(
                **_output_fields(request),
                starts_in_reasoning=opens_reasoning(segments),
                schemas=schemas_of(request.functions) if request.functions else None,
                is_one_call=is_one_call,
            ),
        )

    def completion(self, body: bytes) -> Order:
        request = parse_body(parse_object(body), CompletionRequest)
        self.check_model(request.model)
        order = self._order(
            request,
            [self._prompts.of_completion(prompt, request.suffix) for prompt in request.prompt],
            num_logprobs=request.logprobs,
            constraint=content_constraint(
                request.response_format, request.structured_outputs, request.guided
            ),
            output=OutputOptions(
                **_output_fields(request),
                scores_prompt=request.scores_prompt,
                shows_nothing=request.max_tokens == 0,
            ),
            echoes=tuple(map(self._prompts.text_of, request.prompt)) if request.echo else (),
        )
        return replace(order, echoes_specials=not isinstance(request.prompt[0], str))

    def tokenize(self, body: bytes) -> Told[list[int]]:
        request = parse_body(parse_object(body), TokenizeRequest)
        if request.model is not None:
            self.check_model(request.model)
        if request.prompt is None:
            return Told(self._prompts.of_segments(segments_of(request)), request.ignored_fields)
        add_bos = self.tokenizer.adds_bos and request.add_special_tokens is not False
        return Told(self._prompts.of_text(request.prompt, add_bos=add_bos), request.ignored_fields)

    def detokenize(self, body: bytes) -> Told[str]:
        request = parse_body(parse_object(body), DetokenizeRequest)
        if request.model is not None:
            self.check_model(request.model)
        ids = self._prompts.checked(request.tokens, param="tokens")
        return Told(self.tokenizer.decode(ids, keep_special=True), request.ignored_fields)

    def tokenizer_info(self) -> dict[str, Any]:
        return {**self._prompts.described(), "model_max_length": self.context_tokens}

    def check_model(self, name: str) -> None:
        if name not in self.names:
            served = ", ".join(map(repr, self.names))
            raise ModelNotFound(f"the model {name!r} does not exist here; served: {served}", param="model")

    def _order(
        self,
        request: Options,
        prompts: list[list[int]],
        *,
        num_logprobs: int | None,
        constraint: Constraint | None,
        output: OutputOptions,
        echoes: tuple[str, ...] = (),
    ) -> Order:
        n = request.n or 1
        if len(prompts) * n > MAX_SEQUENCES:
            raise InvalidRequest(f"{len(prompts)} prompts times n = {n}: at most {MAX_SEQUENCES}", param="n")
        if any(token_id >= self.tokenizer.vocab_size for token_id in output.silent_stop_ids):
            raise InvalidRequest(
                f"a token id is not below {self.tokenizer.vocab_size}", param="stop_token_ids"
            )
        if any(token_id >= self.tokenizer.vocab_size for token_id in request.logit_bias or {}):
            raise InvalidRequest(f"a token id is not below {self.tokenizer.vocab_size}", param="logit_bias")
        if constraint is not None and request.ignore_eos:
            raise InvalidRequest("what is held to a grammar cannot ignore its end", param="ignore_eos")
        end_think = self.tokenizer.special_id(END_THINK.text) if output.starts_in_reasoning else None
        samplings = [
            sampling_of(
                request,
                max_tokens=self._max_tokens(request, len(prompts[choice // n])),
                choice=choice % n,
                num_logprobs=num_logprobs,
                of_prompt=output.scores_prompt,
                grammar=constraint.grammar if constraint else "",
                grammar_after=end_think if constraint else None,
            )
            for choice in range(len(prompts) * n)
        ]
        return Order(
            prompts=tuple(prompts),
            samplings=tuple(samplings),
            output=output,
            is_stream=bool(request.stream),
            include_usage=request.include_usage,
            continuous_usage=request.continuous_usage,
            echoes=echoes,
            return_token_ids=bool(request.return_token_ids),
            cache_salt=request.cache_salt or "",
            is_batch=request.is_batch,
            deadline_s=request.deadline_s,
            ignored_fields=_ignored(request, constraint),
            constraint=constraint,
        )

    def _max_tokens(self, request: Options, num_prompt: int) -> int:
        """What the client asked for, else what fits; raises ContextTooLong."""
        room, wanted = self.context_tokens - num_prompt, request.wanted_tokens
        needed = max(wanted or 1, request.min_tokens or 0)
        if needed > room:
            raise ContextTooLong(
                # OpenAI's words: clients tell by them that a shorter prompt would do.
                f"this model's maximum context length is {self.context_tokens} tokens, but "
                f"{num_prompt + needed} are needed: "
                f"{num_prompt} in the prompt, {needed} to be made",
                param=request.prompt_field,
            )
        return room if wanted is None else max(1, wanted)  # one is made even where none is to be shown


def _output_fields(request: Options) -> dict[str, Any]:
    """What every kind of answer is shown by."""
    return {
        "stops": request.stop,
        "min_tokens": request.min_tokens or 0,
        "silent_stop_ids": frozenset(request.stop_token_ids or ()),
    }


def _ignored(request: Options, constraint: Constraint | None) -> str:
    """For the header, bounded: the unknown fields, and what of a schema is not enforced."""
    ignored = constraint.ignored if constraint else ()
    return _listed(request.ignored_fields, *map(header_name, ignored[:MAX_SHOWN_FIELDS]))


def _listed(*names: str) -> str:
    return ", ".join(filter(None, names))
