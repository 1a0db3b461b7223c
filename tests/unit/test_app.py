"""The application over real sockets, before an engine without a model."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ingress.app import create_app
from ingress.engine_client import EngineClient
from ingress.limits import Limits
from ingress.tokens import Tokenizer
from tests.unit.app_server import (
    CHAT,
    LIMITS,
    MODEL,
    PLAIN,
    TEXT,
    Served,
    broken_midway,
    check_error,
    events_of,
    says,
    streamed,
    validate,
)
from tests.unit.loopback_engine import TOKEN, Background, http_server

# Errors


BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"hello",
    "array": b"[1]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "long integer": b'{"seed":' + b"1" * 100_000 + b"}",
    "NaN": b'{"temperature":NaN}',
    "Infinity": b'{"temperature":-Infinity}',
    "invalid UTF-8": b'{"model":"\xff"}',
    "surrogate": b'{"model":"\\ud800"}',
    "no model": b"{}",
    "bad messages": json.dumps({"model": MODEL, "messages": [{"role": 5}] * 6000, "prompt": []}).encode(),
    "big prompt": json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": "a" * 100_000}], "prompt": "a" * 100_000}
    ).encode(),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_bad_body_is_refused_in_shape_and_hurts_nobody(served: Served, path: str, body: bytes):
    good = CHAT if "chat" in path else TEXT
    before = served.answer(path, good)["choices"]
    refused = served.http.post(path, content=body, headers={"content-type": "application/json"})
    assert check_error(refused, 400)["type"] == "invalid_request_error"
    assert served.http.get("/health").status_code == 200
    assert served.answer(path, good)["choices"] == before


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"stream": "maybe"}, "stream"), ({"temperature": "x"}, "temperature"), ({"n": 0}, "n")],
)
def test_a_bad_field_is_named(served: Served, fields: dict[str, Any], param: str):
    assert check_error(served.post("/v1/chat/completions", {**CHAT, **fields}), 400)["param"] == param


def test_another_model_and_too_long_a_prompt_have_codes(served: Served):
    error = check_error(served.post("/v1/completions", {**TEXT, "model": "gpt-4o"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    error = check_error(served.post("/v1/completions", {**TEXT, "prompt": [20] * 5000}), 400)
    assert error["code"] == "context_length_exceeded"
    assert "4096" in error["message"]
    assert "5012" in error["message"]


@pytest.mark.parametrize(
    "path", ["/", "/v2/models", "/v1/chat/completions/", "/docs", "/v1/embeddings", "/%00"]
)
def test_an_unknown_path_is_a_404_in_shape(served: Served, path: str):
    check_error(served.http.get(path), 404)
    check_error(served.http.post(path, json=CHAT), 404)


def test_a_wrong_method_is_a_405_in_shape(served: Served):
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        response = served.http.get(path)
        check_error(response, 405)
        assert response.headers["allow"] == "POST"
    check_error(served.http.delete("/v1/models"), 405)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {},
    ],
)
def test_what_is_not_plain_json_is_a_415(served: Served, headers: dict[str, str]):
    body = json.dumps(CHAT).encode()
    check_error(served.http.post("/v1/chat/completions", content=body, headers=headers), 415)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_may_name_its_charset(served: Served, content_type: str):
    body = json.dumps(CHAT).encode()
    response = served.http.post("/v1/chat/completions", content=body, headers={"content-type": content_type})
    assert response.status_code == 200


def test_two_megabytes_are_a_413(served: Served):
    big = json.dumps({**TEXT, "prompt": "a" * 2_000_000}).encode()
    headers = {"content-type": "application/json"}
    check_error(served.http.post("/v1/completions", content=big, headers=headers), 413)

    def chunks() -> Iterator[bytes]:
        yield from (big[start : start + 65536] for start in range(0, len(big), 65536))

    check_error(served.http.post("/v1/completions", content=chunks(), headers=headers), 413)
    assert served.post("/v1/completions", TEXT).status_code == 200


def raw_exchange(http: httpx.Client, request: bytes) -> bytes:
    """What comes back for these bytes before the client has sent any more."""
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=10) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def test_a_413_does_not_wait_for_the_body(served: Served):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    declared = raw_exchange(served.http, head + b"content-length: 999999999999\r\n\r\n")
    assert declared.startswith(b"HTTP/1.1 413")
    chunk = b"%x\r\n" % (LIMITS.body_bytes + 1) + b"a" * (LIMITS.body_bytes + 1) + b"\r\n"
    chunked = raw_exchange(served.http, head + b"transfer-encoding: chunked\r\n\r\n" + chunk)
    assert chunked.startswith(b"HTTP/1.1 413")


def test_an_alias_is_as_good_as_the_name_which_every_answer_bears(served: Served):
    engine = EngineClient([], token=TOKEN, identity="door-4")
    app = create_app(
        engine=engine,
        tokenizer=served.tokenizer,
        model_name=MODEL,
        aliases=("deepseek-chat", "org/other"),
        context_tokens=4096,
    )
    with http_server(served.background, app) as url, httpx.Client(base_url=url, **PLAIN) as http:
        listed = http.get("/v1/models").json()
        validate(listed, "ListModelsResponse")
        assert [model["id"] for model in listed["data"]] == [MODEL, "deepseek-chat", "org/other"]
        assert {model["root"] for model in listed["data"]} == {MODEL}
        assert http.get("/v1/models/org/other").json()["id"] == "org/other"
        error = check_error(http.post("/v1/completions", json={**TEXT, "model": "gpt"}), 404)
        assert "'deepseek-chat', 'org/other'" in error["message"]
        described = http.get("/openapi.json").json()["components"]["schemas"]["ChatRequest"]
        assert described["properties"]["model"]["enum"] == [MODEL, "deepseek-chat", "org/other"]


def test_a_body_that_does_not_come_is_a_408(served: Served):
    engine = EngineClient([], token=TOKEN, identity="door-3")
    limits = Limits(body_read_s=0.05)
    app = create_app(
        engine=engine, tokenizer=served.tokenizer, model_name=MODEL, context_tokens=4096, limits=limits
    )
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with http_server(served.background, app) as url, httpx.Client(base_url=url, **PLAIN) as http:
        assert raw_exchange(http, head + b"content-length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408")


def test_a_fault_of_the_engine_shows_no_secrets(served: Served):
    says(served, "x", fail=True)
    error = check_error(served.post("/v1/completions", TEXT), 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]


def test_a_fault_of_ours_is_a_500_with_the_request_id(served: Served, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr("ingress.app.Generation", broken)
    response = served.post("/v1/completions", TEXT, headers={"x-request-id": "abc.1"})
    error = check_error(response, 500)
    assert "abc.1" in error["message"]
    assert "secret" not in error["message"]
    assert response.headers["x-request-id"] == "abc.1"


def test_an_error_after_the_start_is_an_event_and_the_stream_still_ends(served: Served):
    rest = broken_midway(served, "/v1/completions", {**TEXT, "max_tokens": 500})
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["type"] == "server_error"


def test_a_failure_before_the_first_token_of_a_stream_has_a_status_of_its_own(served: Served):
    says(served, "x", fail=True)
    check_error(served.post("/v1/chat/completions", {**CHAT, "stream": True}), 500)


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_that_is_refused_after_another_has_spoken_is_served_all_the_same(
    served: Served, stream: bool
):
    body = {**TEXT, "n": 3, "seed": 5, "return_token_ids": True}
    expected = [choice["token_ids"] for choice in served.answer("/v1/completions", body)["choices"]]
    for actor in served.actors:
        actor.refuse = True
    said: list[list[int]] = [[], [], []]
    told = served.chunks("/v1/completions", body) if stream else [served.answer("/v1/completions", body)]
    for choice in (choice for part in told for choice in part["choices"]):
        said[choice["index"]] += choice.get("token_ids", [])
    assert said == expected
    refused = [
        submit for actor in served.actors for submit in actor.submits if not submit.terms["is_promised"]
    ]
    assert len(refused) == 2  # choice 0 of both


def test_more_sequences_than_the_door_takes_are_refused_with_a_time_to_retry(served: Served):
    response = served.post("/v1/completions", {**TEXT, "prompt": ["a"] * 65})
    assert check_error(response, 503)["code"] == "overloaded"
    assert int(response.headers["retry-after"]) >= 1


# Names and places


def test_request_ids_are_echoed_when_sane_and_made_otherwise(served: Served):
    for path in ("/health", "/nowhere"):
        assert served.http.get(path, headers={"x-request-id": "a.B-9_"}).headers["x-request-id"] == "a.B-9_"
        for bad in ("a b", "x" * 129, "a;b", ""):
            made = served.http.get(path, headers={"x-request-id": bad}).headers["x-request-id"]
            assert re.fullmatch(r"req-[0-9a-f]{24}", made)


def test_requests_of_one_id_do_not_meet(served: Served):
    answers = [
        served.post("/v1/completions", {**TEXT, "prompt": prompt}, headers={"x-request-id": "same"}).json()
        for prompt in ("a", "b")
    ]
    assert answers[0]["id"] != answers[1]["id"]
    assert answers[0]["choices"] != answers[1]["choices"]


def test_ignored_fields_are_named(served: Served):
    body = {**CHAT, "user": "u", "store": True}
    assert served.post("/v1/chat/completions", body).headers["x-ignored-fields"] == "store, user"
    body["stream"] = True
    assert served.post("/v1/chat/completions", body).headers["x-ignored-fields"] == "store, user"
    assert "x-ignored-fields" not in served.post("/v1/chat/completions", CHAT).headers
    for path, sound in (
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [20]}),
        ("/v1/messages/count_tokens", CHAT),
    ):
        answer = served.post(path, {**sound, "pretty": True})
        assert "pretty" in answer.headers["x-ignored-fields"].split(", ")


def test_health_ready_version_and_models(served: Served):
    assert served.http.get("/health").status_code == 200
    assert served.http.get("/ready").status_code == 200
    assert served.http.get("/version").json()["version"]
    listed = served.http.get("/v1/models").json()
    validate(listed, "ListModelsResponse")
    assert [model["id"] for model in listed["data"]] == [MODEL]
    validate(served.http.get(f"/v1/models/{MODEL}").json(), "Model")
    assert check_error(served.http.get("/v1/models/other"), 404)["code"] == "model_not_found"


def test_ready_is_false_and_requests_are_refused_without_an_attention_actor(tokenizer: Tokenizer):
    engine = EngineClient([], token=TOKEN, identity="door-1", patience_s=0.05)
    app = create_app(engine=engine, tokenizer=tokenizer, model_name=MODEL, context_tokens=4096)
    background = Background()
    with http_server(background, app) as url, httpx.Client(base_url=url, timeout=30, **PLAIN) as http:
        assert http.get("/health").status_code == 200
        for response in (
            http.get("/ready"),
            http.post("/v1/completions", json=TEXT),
            http.post("/v1/completions", json={**TEXT, "stream": True}),
        ):
            assert check_error(response, 503)["code"] == "overloaded"
            assert "retry-after" in response.headers
    background.close()


def test_tokenize_and_detokenize_are_inverse(served: Served):
    text = "Gr\u00fc\u00dfe \U0001f600 <\uff5cUser\uff5c>"
    told = served.answer("/tokenize", {"model": MODEL, "prompt": text})
    assert told == {"count": len(text.encode()), "max_model_len": 4096, "tokens": told["tokens"]}
    assert len(told["tokens"]) == told["count"]
    assert served.answer("/detokenize", {"model": MODEL, "tokens": told["tokens"]}) == {"prompt": text}
    prompt = served.answer("/tokenize", {"messages": CHAT["messages"]})["tokens"]
    assert (
        served.answer("/v1/chat/completions", {**CHAT, "return_token_ids": True})["prompt_token_ids"]
        == prompt
    )
    check_error(served.post("/tokenize", {}), 400)
    check_error(served.post("/detokenize", {"tokens": [-1]}), 400)
    check_error(served.post("/detokenize", {"tokens": [10**6]}), 400)


# Shapes


OPTIONS: list[dict[str, Any]] = [
    {},
    {"n": 3, "seed": 5, "temperature": 1},
    {"stop": ["Z", "qq"], "max_tokens": 40},
    {"return_token_ids": True},
    {"stream_options": {"include_usage": True}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("logprobs", [False, True])
def test_chat_answers_and_chunks_are_openais(served: Served, options: dict[str, Any], logprobs: bool):
    body = {**CHAT, **options, **({"logprobs": True, "top_logprobs": 2} if logprobs else {})}
    chunks = served.chunks("/v1/chat/completions", body)
    body.pop("stream_options", None)
    whole = served.answer("/v1/chat/completions", body)
    validate(whole, "CreateChatCompletionResponse")
    for chunk in chunks:
        validate(chunk, "CreateChatCompletionStreamResponse")
    for choice in whole["choices"]:
        if logprobs:
            entries = choice["logprobs"]["content"]
            assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
            spelled = b"".join(bytes(entry["bytes"]) for entry in entries).decode()
            assert spelled.startswith(choice["message"]["content"])
        else:
            assert choice["logprobs"] is None


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_completion_answers_and_chunks_are_openais(
    served: Served, options: dict[str, Any], logprobs: int | None
):
    body = {**TEXT, **options, "logprobs": logprobs}
    chunks = served.chunks("/v1/completions", body)
    body.pop("stream_options", None)
    whole = served.answer("/v1/completions", body)
    validate(whole, "CreateCompletionResponse")
    for chunk in chunks:
        validate(chunk, "CreateCompletionResponse")
    for choice in whole["choices"]:
        if logprobs is None:
            assert choice["logprobs"] is None
            continue
        told = choice["logprobs"]
        assert "".join(told["tokens"]).startswith(choice["text"])
        assert told["text_offset"] == [len("".join(told["tokens"][:i])) for i in range(len(told["tokens"]))]
        streamed = [
            c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["index"] == choice["index"]
        ]
        for name, values in told.items():
            parts = [piece["logprobs"][name] for piece in streamed if piece["logprobs"]]
            assert list(itertools.chain.from_iterable(parts)) == values


def test_errors_are_openais(served: Served):
    validate(served.post("/v1/completions", {}).json(), "ErrorResponse")
    validate(served.http.get("/nowhere").json(), "ErrorResponse")


def test_a_chat_stream_has_the_shape_that_clients_expect(served: Served):
    body = {**CHAT, "stream_options": {"include_usage": True}}
    chunks = served.chunks("/v1/chat/completions", body)
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], MODEL, "chat.completion.chunk")
    }
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in chunks[1:-2])
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "length"
    ]
    assert chunks[-1]["choices"] == []
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["usage"]["completion_tokens"] == 12


def test_without_include_usage_no_chunk_speaks_of_usage(served: Served):
    assert not any("usage" in chunk for chunk in served.chunks("/v1/chat/completions", CHAT))


# The same text, however it comes


@pytest.mark.parametrize("tokens_per_event", [1, 3, 50])
@pytest.mark.parametrize(
    "said",
    [
        "plain text",
        "Gr\u00fc\u00dfe \U0001f600\U0001f600 \u2028 \x85 data: x\n\ny",
        "one two thr\u00e9e four",
    ],
)
@pytest.mark.parametrize("stop", [None, "two", ["\U0001f600 ", "e f"]])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_says_what_the_whole_answer_says(
    served: Served, path: str, said: str, stop: Any, tokens_per_event: int
):
    says(served, said, tokens_per_event=tokens_per_event)
    good = CHAT if "chat" in path else TEXT
    body = {**good, "max_tokens": 100, "stop": stop, "return_token_ids": True}
    whole = served.answer(path, body)
    body["stream_options"] = {"include_usage": True}
    chunks = served.chunks(path, body)
    choice = whole["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    assert streamed(chunks)[0] == ("", text, choice["token_ids"], choice["finish_reason"])
    assert chunks[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == len(choice["token_ids"])
    found = [said.find(one) for one in ([stop] if isinstance(stop, str) else stop or []) if one in said]
    assert text == (said[: min(found)] if found else said)
    assert choice["finish_reason"] == "stop"


def test_a_stop_string_cancels_the_sequence(served: Served):
    says(served, "abc STOP" + "x" * 3000, pause_s=0.001)
    body = {**TEXT, "max_tokens": 3000, "stop": "STOP"}
    answer = served.answer("/v1/completions", body)
    assert answer["choices"][0]["text"] == "abc "
    assert answer["usage"]["completion_tokens"] == len("abc STOP")
    served.until(lambda: sum(len(actor.cancelled) for actor in served.actors) == 1)


def test_a_stop_string_is_a_normal_end_and_a_client_that_leaves_is_not(served: Served):
    ended = served.engine.metrics.ended
    stopped, cut = ended["stop"], ended["cut"]
    says(served, "abc STOP" + "x" * 3000, pause_s=0.001)
    served.answer("/v1/completions", {**TEXT, "max_tokens": 3000, "stop": "STOP"})
    served.until(lambda: ended["stop"] == stopped + 1)
    with open_request(served.http, {**TEXT, "max_tokens": 3000, "stream": True}):
        served.until(lambda: served.engine.open_sequences == 1)
    served.until(lambda: ended["cut"] == cut + 1)


def test_reasoning_and_content_are_told_apart(served: Served):
    end_think = served.tokenizer.special_id("</think>")
    ids = [*served.tokenizer.encode_text("let me see"), end_think, *served.tokenizer.encode_text("yes")]
    says(served, ids, tokens_per_event=4)
    body = {**CHAT, "max_tokens": 100, "thinking": {"type": "enabled"}}
    whole = served.answer("/v1/chat/completions", body)
    validate(whole, "CreateChatCompletionResponse")
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("let me see", "yes")
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("let me see") + 1}
    assert whole["usage"]["completion_tokens"] == len(ids) + 1  # and the end of text
    chunks = served.chunks("/v1/chat/completions", body)
    assert streamed(chunks)[0][:2] == ("let me see", "yes")


def test_several_choices_and_prompts_come_in_order(served: Served):
    many = served.answer("/v1/completions", {**TEXT, "prompt": ["a", "b"], "n": 2})
    assert [choice["index"] for choice in many["choices"]] == [0, 1, 2, 3]
    alone = [served.answer("/v1/completions", {**TEXT, "prompt": prompt}) for prompt in ("a", "b")]
    texts = [choice["text"] for choice in many["choices"]]
    assert texts == [alone[0]["choices"][0]["text"]] * 2 + [alone[1]["choices"][0]["text"]] * 2
    assert many["usage"]["prompt_tokens"] == 2
    assert many["usage"]["completion_tokens"] == 48
    told = streamed(served.chunks("/v1/completions", {**TEXT, "prompt": ["a", "b"], "n": 2}))
    assert [told[index][1] for index in range(4)] == texts


def test_token_ids_of_the_prompt_are_told_once(served: Served):
    prompt = served.tokenizer.encode_text("hello")
    chunks = served.chunks("/v1/completions", {**TEXT, "return_token_ids": True})
    assert [c["choices"][0]["prompt_token_ids"] for c in chunks if "prompt_token_ids" in c["choices"][0]] == [
        prompt
    ]
    chat = served.chunks("/v1/chat/completions", {**CHAT, "return_token_ids": True})
    assert ["prompt_token_ids" in chunk for chunk in chat] == [True] + [False] * (len(chat) - 1)


def test_a_long_body_is_read_on_a_thread_to_the_same_end(served: Served):
    messages = [{"role": "user", "content": "word " * 600}]
    assert len(json.dumps(messages)) < LIMITS.inline_bytes
    padded = {**CHAT, "messages": messages, "user": "x" * 2 * LIMITS.inline_bytes}
    short = served.answer("/v1/chat/completions", {**CHAT, "messages": messages})
    assert served.answer("/v1/chat/completions", padded)["choices"] == short["choices"]


# Faults and departures


def test_a_stream_survives_the_loss_of_its_actor(served: Served):
    body = {**TEXT, "max_tokens": 60, "return_token_ids": True}
    calm = served.answer("/v1/completions", body)["choices"][0]
    for drop_after in (1, 17, 42):
        for actor in served.actors:
            actor.drop_after = drop_after
        told = streamed(served.chunks("/v1/completions", body))[0]
        assert told == ("", calm["text"], calm["token_ids"], "length")
        assert any(actor.drop_after is None for actor in served.actors)  # it did happen
        served.until(lambda: len(served.engine._candidates()) == 2)


def open_request(http: httpx.Client, body: dict[str, Any], receive_bytes: int | None = None) -> socket.socket:
    """A connection on which this request was sent and nothing read."""
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect((http.base_url.host, http.base_url.port))
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n"
    connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_sequences(served: Served, stream: bool):
    says(served, "x" * 4000, pause_s=0.002)
    with open_request(served.http, {**TEXT, "max_tokens": 4000, "n": 2, "stream": stream}):
        served.until(lambda: sum(len(actor.submits) for actor in served.actors) == 2)
    served.until(lambda: sum(len(actor.cancelled) for actor in served.actors) == 2)
    served.until(lambda: served.engine.open_sequences == 0)


def test_a_client_that_stops_reading_loses_its_sequences(served: Served):
    actor = served.actors[0]
    says(served, "x" * 900_000, tokens_per_event=200)
    engine = EngineClient([actor.endpoint], token=TOKEN, identity="door-2")
    app = create_app(
        engine=engine,
        tokenizer=served.tokenizer,
        model_name=MODEL,
        context_tokens=10**6,
        limits=Limits(send_s=0.3),
    )
    body = {**TEXT, "max_tokens": 900_000, "logprobs": 5, "stream": True}
    server = http_server(served.background, app, send_bytes=4096)
    with server as url, httpx.Client(base_url=url, **PLAIN) as http:
        with open_request(http, body, receive_bytes=4096):
            served.until(lambda: len(actor.cancelled) == 1)
        assert http.get("/health").status_code == 200


def test_a_silent_engine_makes_a_stream_say_that_it_lives(served: Served):
    for actor in served.actors:
        actor.mute = True
    with served.http.stream("POST", "/v1/completions", json={**TEXT, "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines) == ": keep-alive"
        for actor in served.actors:
            actor.mute = False
        rest = [line for line in lines if line and not line.startswith(":")]
    assert rest[-1] == "data: [DONE]"


def test_many_clients_at_once_get_their_own_answers(served: Served):
    async def scenario() -> None:
        limits = httpx.Limits(max_connections=30)
        async with httpx.AsyncClient(
            base_url=served.http.base_url, limits=limits, timeout=30, **PLAIN
        ) as http:
            bodies = [{**TEXT, "prompt": [30 + number], "stream": number % 2 == 0} for number in range(40)]
            answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))
        for body, answer in zip(bodies, answers, strict=True):
            alone = served.answer("/v1/completions", {**body, "stream": False})["choices"][0]["text"]
            told = (
                streamed(events_of(answer))[0][1] if body["stream"] else answer.json()["choices"][0]["text"]
            )
            assert told == alone

    asyncio.run(scenario())


def test_another_client_is_served_while_a_long_prompt_is_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    is_at_work = threading.Event()
    encode = Tokenizer.encode_text

    def told(tokenizer: Tokenizer, text: str) -> list[int]:
        is_at_work.set()
        return encode(tokenizer, text)

    monkeypatch.setattr(Tokenizer, "encode_text", told)

    async def scenario() -> None:
        order: list[str] = []

        async def call(http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> None:
            assert (await http.request(method, path, json=body)).status_code == 200
            order.append(path)

        async def call_while_at_work(http: httpx.AsyncClient) -> None:
            assert await asyncio.to_thread(is_at_work.wait, 30)
            await call(http, "GET", "/health")

        async with httpx.AsyncClient(base_url=served.http.base_url, timeout=30, **PLAIN) as http:
            long = {"prompt": "word " * 80_000}
            await asyncio.gather(
                call(http, "POST", "/tokenize", long),
                call(http, "POST", "/tokenize", long),
                call_while_at_work(http),
            )
        assert order[0] == "/health"

    asyncio.run(scenario())
