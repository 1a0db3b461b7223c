"""The OpenAPI document: what may be asked, what comes back.

Requests are described by the classes that read them (ingress/schema.py and its neighbours), with words of our
own only where a validator of theirs says more than a type; answers by ingress/openapi_answers.py. Knows
nothing of how anything is served.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.json_schema import models_json_schema

from ingress.constraints import FORMAT_NAME
from ingress.messages_request import CountRequest, MessagesRequest
from ingress.openapi_answers import ANSWERS, Json, array, of, ref
from ingress.options import MAX_BIASES, MAX_STOP_CHARS, MAX_STOPS, MOST_BIAS, Body
from ingress.responses_request import ResponsesRequest
from ingress.schema import (
    MAX_MESSAGES,
    MAX_PROMPTS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from ingress.tools import MAX_TOOLS

REQUESTS: tuple[type[Body], ...] = (
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    MessagesRequest,
    CountRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
ERRORS = {
    "400": "a field is wrong: `param` names it",
    "401": "no key, or none that is known",
    "404": "no such model, or nothing is served there",
    "405": "the path has no such method",
    "408": "the request did not arrive in time",
    "413": "the body is too large",
    "415": "not plain JSON",
    "429": "too much at once of this key, or the queue is full of it",
    "431": "the head of the request is too large",
    "500": "a fault of ours",
    "503": "too much waits here, or nobody can be reached",
    "504": "the request's own `deadline_s` passed before its first token",
}
TOLD_WHEN = ("429", "503", "504")  # with Retry-After

TEXT_PARTS = array(of(type={"const": "text"}, text={"type": "string"}), minItems=1)
CONTENT = {"anyOf": [{"type": "string"}, TEXT_PARTS]}
CHAT_MESSAGE: Json = {
    "anyOf": [
        of(role={"enum": ["system", "user", "developer"]}, content=CONTENT),
        of(role={"const": "assistant"}, content={"type": "string"}),
    ]
}
TOOL = of(
    type={"const": "function"},
    function=of(
        name={"type": "string", "pattern": FORMAT_NAME},
        optional={"description": {"type": "string"}, "parameters": {"type": "object"}},
    ),
)
TOOLS = {"anyOf": [array(TOOL, minItems=1, maxItems=MAX_TOOLS), {"type": "null"}]}
THEIR_MESSAGES = array(
    of(role={"enum": ["user", "assistant"]}, content=CONTENT), minItems=1, maxItems=MAX_MESSAGES
)
THEIR_TOOL = of(name={"type": "string", "pattern": FORMAT_NAME}, input_schema={"type": "object"})
THEIR_TOOLS = {"anyOf": [array(THEIR_TOOL, minItems=1, maxItems=MAX_TOOLS), {"type": "null"}]}
TOKEN_IDS = array({"type": "integer", "minimum": 0}, minItems=1)
TEXT = {"type": "string", "minLength": 1}
# By class and field, where the class reads more than its annotation says.
SAID_MORE: dict[str, Json] = {
    "ChatRequest": {"messages": array(CHAT_MESSAGE, minItems=1, maxItems=MAX_MESSAGES), "tools": TOOLS},
    "TokenizeRequest": {
        "messages": {"anyOf": [array(CHAT_MESSAGE, minItems=1, maxItems=MAX_MESSAGES), {"type": "null"}]},
        "tools": TOOLS,
    },
    "MessagesRequest": {"messages": THEIR_MESSAGES, "tools": THEIR_TOOLS},
    "CountRequest": {"messages": THEIR_MESSAGES, "tools": THEIR_TOOLS},
    "CompletionRequest": {
        "prompt": {
            "anyOf": [
                TEXT,
                TOKEN_IDS,
                array(TEXT, minItems=1, maxItems=MAX_PROMPTS),
                array(TOKEN_IDS, minItems=1, maxItems=MAX_PROMPTS),
            ]
        }
    },
}
STOPS: Json = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
        array({"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}, maxItems=MAX_STOPS),
        {"type": "null"},
    ]
}
BIASES: Json = {
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"},
            "additionalProperties": {"type": "number", "minimum": -MOST_BIAS, "maximum": MOST_BIAS},
            "maxProperties": MAX_BIASES,
        },
        {"type": "null"},
    ]
}
EITHER: Json = {
    "oneOf": [
        {"required": [given], "properties": {given: {"not": {"type": "null"}}, other: {"type": "null"}}}
        for given, other in (("prompt", "messages"), ("messages", "prompt"))
    ]
}
EVENT: Json = {
    **of(data={"type": "string"}, optional={"event": {"type": "string"}}),
    "description": "with `stream: true`: one event; the data is JSON, or [DONE]",
}
COMMON = {"stop": STOPS, "logit_bias": BIASES}
QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
EXAMPLES: dict[str, Json] = {
    "ChatRequest": {"messages": QUESTION, "temperature": 0},
    "CompletionRequest": {"prompt": "4 + 2", "max_tokens": 0, "echo": True, "logprobs": 0},
    "ResponsesRequest": {"input": "What is 17 + 25?"},
    "MessagesRequest": {"messages": QUESTION, "max_tokens": 64},
    "CountRequest": {"messages": QUESTION},
    "TokenizeRequest": {"prompt": "4 + 2"},
    "DetokenizeRequest": {"tokens": [20, 21]},
}


def document(model_names: Sequence[str], version: str, *, prefixes: tuple[str, ...], has_keys: bool) -> Json:
    """model_names: answers bear the first. prefixes: under which OpenAI's routes are served."""
    posts: list[tuple[str, str, str, str]] = [
        *((f"{prefix}/chat/completions", "ChatRequest", "ChatCompletion", "A chat") for prefix in prefixes),
        *((f"{prefix}/completions", "CompletionRequest", "Completion", "Text") for prefix in prefixes),
        ("/v1/responses", "ResponsesRequest", "Response", "A chat, in the words of the Responses API"),
    ]
    for prefix in ("/v1", "/anthropic/v1"):
        posts.append((f"{prefix}/messages", "MessagesRequest", "Message", "A chat, in Anthropic's words"))
        posts.append((f"{prefix}/messages/count_tokens", "CountRequest", "TokenCount", "Count its tokens"))
    posts.append(("/tokenize", "TokenizeRequest", "Tokenized", "Text or a chat to token ids"))
    posts.append(("/detokenize", "DetokenizeRequest", "Detokenized", "Token ids to text"))
    paths: Json = {path: {"post": _post(*rest, model_name=model_names[0])} for path, *rest in posts}
    paths |= {path: {"get": get} for path, get in _gets(prefixes, model_names)}
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": "Shoal", "version": version, "description": "An endpoint as OpenAI's."},
        "paths": paths,
        "components": {"schemas": {**_requests(model_names), **ANSWERS}},
    }
    if has_keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
    return found


def _requests(model_names: Sequence[str]) -> Json:
    _, found = models_json_schema(
        [(kind, "validation") for kind in REQUESTS], ref_template="#/components/schemas/{model}"
    )
    schemas: Json = found["$defs"]
    for name, schema in schemas.items():
        fields = schema.get("properties", {})
        fields |= {key: value for key, value in COMMON.items() if key in fields}
        fields |= SAID_MORE.get(name, {})
        if "model" in fields:
            fields["model"] = {"type": "string", "enum": list(model_names)}
    schemas["TokenizeRequest"] |= EITHER
    return schemas


def _post(request: str, answer: str, summary: str, *, model_name: str) -> Json:
    streams = answer in ("ChatCompletion", "Completion", "Response", "Message")
    content: Json = {"application/json": {"schema": ref(answer)}}
    if streams:
        content["text/event-stream"] = {"schema": EVENT}
    names_model = request not in ("TokenizeRequest", "DetokenizeRequest")
    example = {**({"model": model_name} if names_model else {}), **EXAMPLES[request]}
    told = {"200": {"description": "the answer", "content": content}}
    error = "MessagesError" if request in ("MessagesRequest", "CountRequest") else "Error"
    return {
        "summary": summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ref(request), "example": example}},
        },
        "responses": told | _errors(error),
    }


def _gets(prefixes: tuple[str, ...], model_names: Sequence[str]) -> list[tuple[str, Json]]:
    name: Json = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": list(model_names)},
    }
    generate: Json = {"name": "generate", "in": "query", "schema": {"type": "boolean"}}
    gets = [
        *((f"{prefix}/models", _get("ModelList", "The models")) for prefix in prefixes),
        *((f"{prefix}/models/{{name}}", _get("Model", "One model", name)) for prefix in prefixes),
        ("/tokenizer_info", _get("TokenizerInfo", "How to count tokens as the server does")),
        ("/ready", _get("Ready", "Whether a request sent now would be served", is_open=True)),
        ("/load", _get("Load", "How much is under way")),
        ("/version", _get("Version", "Of Shoal")),
        ("/health", _get(None, "Whether the process answers", generate, is_open=True)),
    ]
    return gets


def _get(answer: str | None, summary: str, *parameters: Json, is_open: bool = False) -> Json:
    """is_open: asks for no key."""
    told: Json = {"description": "the answer"}
    if answer is not None:
        told["content"] = {"application/json": {"schema": ref(answer)}}
    found: Json = {"summary": summary, "responses": {"200": told} | _errors("Error")}
    if parameters:
        found["parameters"] = list(parameters)
    if is_open:
        found["security"] = []
    return found


def _errors(name: str) -> Json:
    content = {"application/json": {"schema": ref(name)}}
    retry: Json = {"headers": {"retry-after": {"schema": {"type": "integer", "minimum": 1}}}}
    return {
        status: {"description": meaning, "content": content} | (retry if status in TOLD_WHEN else {})
        for status, meaning in ERRORS.items()
    }
