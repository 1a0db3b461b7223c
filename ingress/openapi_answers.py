"""The answers, as the OpenAPI document describes them.

Each is checked against what is served (tests/unit/test_openapi.py). Knows nothing of requests.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

STRING: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
BOOLEAN: Json = {"type": "boolean"}
NUMBER: Json = {"type": "number"}
NULL: Json = {"type": "null"}


def of(*, optional: Json | None = None, **fields: Json) -> Json:
    """An object with these fields, and perhaps the optional ones; others may come."""
    return {"type": "object", "required": sorted(fields), "properties": {**fields, **(optional or {})}}


def array(items: Json, **bounds: int) -> Json:
    return {"type": "array", "items": items, **bounds}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def maybe(schema: Json) -> Json:
    return {"anyOf": [schema, NULL]}


USAGE = of(
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    total_tokens=COUNT,
    prompt_tokens_details=of(cached_tokens=COUNT),
    prompt_cache_hit_tokens=COUNT,
    prompt_cache_miss_tokens=COUNT,
    completion_tokens_details=of(reasoning_tokens=COUNT),
)
TOKEN = of(token=STRING, logprob=NUMBER, bytes=array(COUNT))
CALL = of(id=STRING, type={"const": "function"}, function=of(name=STRING, arguments=STRING))
CHAT_CHOICE = of(
    index=COUNT,
    message=of(
        role={"const": "assistant"},
        content=maybe(STRING),
        refusal=NULL,
        optional={"reasoning_content": STRING, "reasoning": STRING, "tool_calls": array(CALL, minItems=1)},
    ),
    logprobs=maybe(of(content=array(of(**TOKEN["properties"], top_logprobs=array(TOKEN))), refusal=NULL)),
    finish_reason={"enum": ["stop", "length", "tool_calls"]},
)
TEXT_CHOICE = of(
    index=COUNT,
    text=STRING,
    logprobs=maybe(
        of(
            tokens=array(STRING),
            token_logprobs=array(maybe(NUMBER)),
            top_logprobs=array(maybe({"type": "object", "additionalProperties": NUMBER})),
            text_offset=array(COUNT),
        )
    ),
    finish_reason={"enum": ["stop", "length"]},
)
MODEL = of(
    id=STRING, root=STRING, object={"const": "model"}, created=COUNT, owned_by=STRING, max_model_len=COUNT
)
ANSWERS: Json = {
    "Error": of(error=of(message=STRING, type=STRING, param=maybe(STRING), code=maybe(STRING))),
    "MessagesError": {
        "anyOf": [of(type={"const": "error"}, error=of(type=STRING, message=STRING)), ref("Error")]
    },
    "ChatCompletion": of(
        id=STRING,
        object={"const": "chat.completion"},
        created=COUNT,
        model=STRING,
        choices=array(CHAT_CHOICE, minItems=1),
        usage=USAGE,
        optional={"prompt_token_ids": array(COUNT)},
    ),
    "Completion": of(
        id=STRING,
        object={"const": "text_completion"},
        created=COUNT,
        model=STRING,
        choices=array(TEXT_CHOICE, minItems=1),
        usage=USAGE,
    ),
    "Response": of(
        id=STRING,
        object={"const": "response"},
        created_at=COUNT,
        model=STRING,
        status={"enum": ["completed", "incomplete"]},
        output=array(of(type={"enum": ["message", "reasoning", "function_call"]}, id=STRING)),
        usage=of(input_tokens=COUNT, output_tokens=COUNT, total_tokens=COUNT),
    ),
    "Message": of(
        id=STRING,
        type={"const": "message"},
        role={"const": "assistant"},
        model=STRING,
        content=array(of(type={"enum": ["text", "thinking", "tool_use"]})),
        stop_reason=STRING,
        usage=of(input_tokens=COUNT, output_tokens=COUNT),
    ),
    "TokenCount": of(input_tokens=COUNT),
    "Tokenized": of(count=COUNT, max_model_len=COUNT, tokens=array(COUNT)),
    "Detokenized": of(prompt=STRING),
    "TokenizerInfo": of(
        vocab_size=COUNT,
        model_max_length=COUNT,
        add_bos_token=BOOLEAN,
        bos_token=STRING,
        bos_token_id=COUNT,
        eos_token=STRING,
        eos_token_id=COUNT,
        chat_template=NULL,
    ),
    "Model": MODEL,
    "ModelList": of(object={"const": "list"}, data=array(MODEL)),
    "Ready": of(status={"const": "ready"}),
    "Load": of(server_load=COUNT, max_server_load=COUNT, wait_s=NUMBER),
    "Version": of(version=STRING),
}
