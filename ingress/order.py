"""A checked request, ready for the engine.

From the bytes of a body to prompt ids, sampling and how the answer is to be shown. Pure: may run on any
thread. Knows nothing of HTTP and of how answers are written.

Errors: InvalidRequest, ContextTooLong, ModelNotFound (ingress/errors.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.messages import Sampling
from ingress.body import parse_object
from ingress.constraints import Constraint, ToolTerms, content_constraint, with_calls
from ingress.dsml import schemas_of
from ingress.encoding import encode_messages, opens_reasoning
from ingress.errors import ContextTooLong, InvalidRequest, ModelNotFound
from ingress.messages_request import CountRequest, MessagesRequest
from ingress.options import MAX_SHOWN_FIELDS, Options, header_name
from ingress.output import OutputOptions
from ingress.responses_request import ResponsesRequest, own_name
from ingress.schema import (
    ChatRequest,
    CompletionRequest,
    Conversation,
    DetokenizeRequest,
    TokenizeRequest,
    parse_body,
)
from ingress.specials import BOS, DSML, END_THINK, EOS, FIM_BEGIN, FIM_END, FIM_HOLE, Segment
from ingress.tokens import Tokenizer, TokenizerError
from ingress.values import PromptError

MAX_SEQUENCES = 1024  # of one request: prompts times n
SEED_MASK = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Prompt i makes the choices i * n to i * n + n - 1; `samplings` has one entry per choice.

    echoes: the text of each prompt, where it is to be repeated; echoes_specials: they are of token ids, and
    spell special tokens out. deadline_s: from when the whole request is
    here. constraint: what the answers are held to, already in the samplings.
    """

    prompts: tuple[list[int], ...]
    samplings: tuple[Sampling, ...]
    output: OutputOptions
    is_stream: bool
    include_usage: bool
    continuous_usage: bool
    echoes: tuple[str, ...] = ()
    echoes_specials: bool = False
    return_token_ids: bool
    cache_salt: str
    is_batch: bool
    deadline_s: float | None
    ignored_fields: str
    constraint: Constraint | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def choices_per_prompt(self) -> int:
        return len(self.samplings) // len(self.prompts)

    def prompt_of(self, choice: int) -> list[int]:
        return self.prompts[choice // self.choices_per_prompt]


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderDesk:
    """Turns bodies into orders for one model. add_bos: texts of /v1/completions begin with the BOS token."""

    tokenizer: Tokenizer
    model_name: str
    context_tokens: int
    add_bos: bool

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

    def count_tokens(self, body: bytes) -> int:
        """Of the prompt that `messages` would make."""
        request = parse_body(parse_object(body), CountRequest)
        self.check_model(request.model)
        return len(self._prompt_ids(_segments(parse_body(request.as_chat(), ChatRequest))))

    def _chat(self, request: ChatRequest) -> Order:
        self.check_model(request.model)
        segments = _segments(request)
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
            [self._prompt_ids(segments)],
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
            [self._completion_ids(prompt, request.suffix) for prompt in request.prompt],
            num_logprobs=request.logprobs,
            constraint=content_constraint(
                request.response_format, request.structured_outputs, request.guided
            ),
            output=OutputOptions(
                **_output_fields(request),
                scores_prompt=request.scores_prompt,
                shows_nothing=request.max_tokens == 0,
            ),
            echoes=tuple(map(self._as_text, request.prompt)) if request.echo else (),
        )
        return replace(order, echoes_specials=not isinstance(request.prompt[0], str))

    def tokenize(self, body: bytes) -> list[int]:
        request = parse_body(parse_object(body), TokenizeRequest)
        if request.model is not None:
            self.check_model(request.model)
        if request.prompt is not None:
            return self._text_ids(
                request.prompt, add_bos=self.add_bos and request.add_special_tokens is not False
            )
        return self._prompt_ids(_segments(request))

    def detokenize(self, body: bytes) -> str:
        request = parse_body(parse_object(body), DetokenizeRequest)
        if request.model is not None:
            self.check_model(request.model)
        return self.tokenizer.decode(self._checked_ids(request.tokens, param="tokens"), keep_special=True)

    def tokenizer_info(self) -> dict[str, Any]:
        """What a client needs to count tokens as we do. There is no chat template: the format is code."""
        return {
            "vocab_size": self.tokenizer.vocab_size,
            "model_max_length": self.context_tokens,
            "add_bos_token": self.add_bos,
            "bos_token": BOS.text,
            "bos_token_id": self.tokenizer.special_id(BOS.text),
            "eos_token": EOS.text,
            "eos_token_id": self.tokenizer.special_id(EOS.text),
            "chat_template": None,
        }

    def check_model(self, name: str) -> None:
        if name != self.model_name:
            raise ModelNotFound(
                f"the model {name!r} does not exist here; served: {self.model_name!r}", param="model"
            )

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
            _sampling(
                request,
                max_tokens=self._max_tokens(request, len(prompts[choice // n])),
                seed=_seed(request.seed, choice % n),
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

    def _completion_ids(self, prompt: str | list[int], suffix: str | None) -> list[int]:
        if not isinstance(prompt, str):
            return self._checked_ids(prompt)
        if not suffix:
            return self._text_ids(prompt, add_bos=self.add_bos)
        # Fill in the middle, as DeepSeek's models were trained on it.
        segments: list[Segment] = [FIM_BEGIN, prompt, FIM_HOLE, suffix, FIM_END]
        return self._prompt_ids([BOS, *segments] if self.add_bos else segments, param="suffix")

    def _text_ids(self, text: str, *, add_bos: bool) -> list[int]:
        return self._prompt_ids([BOS, text] if add_bos else [text], param="prompt")

    def _prompt_ids(self, segments: Sequence[Segment], param: str = "messages") -> list[int]:
        """Raises InvalidRequest, also where this model's vocabulary lacks what the request needs."""
        try:
            return self.tokenizer.encode_prompt(segments)
        except TokenizerError as error:
            raise InvalidRequest(str(error), param=param) from None

    def _as_text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, keep_special=True)

    def _checked_ids(self, ids: list[int], param: str = "prompt") -> list[int]:
        if ids and not 0 <= min(ids) <= max(ids) < self.tokenizer.vocab_size:
            raise InvalidRequest(f"a token id is not in 0 to {self.tokenizer.vocab_size - 1}", param=param)
        return ids


def _segments(request: Conversation) -> list[Segment]:
    try:
        return encode_messages(
            request.prompt_messages,
            thinking=request.wants_thinking,
            tools=request.prompt_tools,
            response_format=None if request.response_format is None else request.response_format.as_sent,
        )
    except PromptError as error:
        raise InvalidRequest(str(error), param=error.param) from None


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


def _sampling(
    request: Options,
    *,
    max_tokens: int,
    seed: int,
    num_logprobs: int | None,
    of_prompt: bool,
    grammar: str,
    grammar_after: int | None,
) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        seed=seed,
        temperature=_or(request.temperature, 1.0),
        top_p=_or(request.top_p, 1.0),
        top_k=max(0, request.top_k or 0),  # -1 is another way to say off
        min_p=_or(request.min_p, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        min_tokens=request.min_tokens or 0,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logit_bias=tuple(sorted((request.logit_bias or {}).items())),
        logprobs=num_logprobs,
        of_prompt=of_prompt,
        grammar=grammar,
        grammar_after=grammar_after,
    )


def _seed(given: int | None, choice: int) -> int:
    """Choice 0, 1, ... of a prompt: the same for a given seed, whatever other prompts came with it."""
    return secrets.randbits(63) if given is None else (given + choice) & SEED_MASK


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)
