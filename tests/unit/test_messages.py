"""Anthropic's Messages API: the same answers under other names."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.unit.app_server import CHAT, MODEL, Served, broken_midway, says, spelled

MESSAGES, COUNT, CHATS = "/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions"
QUESTION = {"role": "user", "content": "weather?"}
ASK = {"model": MODEL, "max_tokens": 900, "messages": [QUESTION], "temperature": 0}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"name": "weather", "description": "The weather.", "input_schema": SCHEMA}
FUNCTION = {"name": "weather", "parameters": SCHEMA, "description": "The weather."}
CALL = """

<｜DSML｜function_calls>
<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>"""
INPUT = {"city": "Paris", "days": 3}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream; each name is that of its data."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    text = response.text.replace(": keep-alive\n\n", "")  # a slow machine
    frames = re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)
    assert text == "".join(f"event: {name}\ndata: {data}\n\n" for name, data in frames)
    events = [json.loads(data) for _, data in frames]
    assert [event["type"] for event in events] == [name for name, _ in frames]
    return events


def message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client puts together; checks that each block is begun and ended in its turn."""
    message, content = events[0]["message"], []
    assert message["content"] == []
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(content)
                content.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                assert event["index"] == len(content) - 1
                told = event["delta"]
                name = {"text_delta": "text", "thinking_delta": "thinking"}.get(told["type"], "json")
                content[-1][name] += told[name if name != "json" else "partial_json"]
            case "content_block_stop":
                assert event["index"] == len(content) - 1
                arguments = content[-1].pop("json")
                if arguments:
                    content[-1]["input"] = json.loads(arguments)
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    return {**message, "content": content, **events[-2]["delta"], "usage": events[-2]["usage"]}


def named(message: dict[str, Any]) -> dict[str, Any]:
    """Without what is never the same."""
    blocks = [{**block, "id": "x"} if "id" in block else block for block in message["content"]]
    return {**message, "id": "x", "content": blocks}


@pytest.mark.parametrize("tokens_per_event", [1, 900])
def test_reasoning_text_and_calls_are_blocks_streamed_or_whole(served: Served, tokens_per_event: int):
    ids = spelled(served.tokenizer, "hm</think>Let me see." + CALL)
    says(served, ids, tokens_per_event=tokens_per_event)
    body = {**ASK, "tools": [TOOL], "thinking": {"type": "enabled", "budget_tokens": 1024}}
    whole = served.answer(MESSAGES, body)
    thinking, text, call = whole["content"]
    assert thinking == {"type": "thinking", "thinking": "hm", "signature": ""}
    assert text == {"type": "text", "text": "Let me see."}
    assert call == {"type": "tool_use", "id": call["id"], "name": "weather", "input": INPUT}
    assert re.fullmatch("toolu_[0-9a-f]{24}", call["id"])
    assert re.fullmatch("msg-[0-9a-f]{32}", whole["id"])
    assert (whole["type"], whole["role"], whole["model"]) == ("message", "assistant", MODEL)
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("tool_use", None)
    assert whole["usage"]["output_tokens"] == len(ids) + 1
    assert (
        whole["usage"]["input_tokens"]
        == served.answer(COUNT, without(body, "max_tokens", "temperature"))["input_tokens"]
    )
    assert named(message_of(events_of(served.post(MESSAGES, {**body, "stream": True})))) == named(whole)


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


@pytest.mark.parametrize(
    ("fields", "text", "reason", "stop"),
    [
        ({}, "one two", "end_turn", None),
        ({"max_tokens": 5}, "one t", "max_tokens", None),
        ({"stop_sequences": ["x", "e t", "t"]}, "on", "stop_sequence", "e t"),
    ],
    ids=str,
)
def test_the_reason_of_the_end_is_told(served: Served, fields: Any, text: str, reason: str, stop: str | None):
    says(served, "one two")
    whole = served.answer(MESSAGES, {**ASK, **fields})
    assert whole["content"] == [{"type": "text", "text": text}]
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, stop)
    streamed = events_of(served.post(MESSAGES, {**ASK, **fields, "stream": True}))
    assert named(message_of(streamed)) == named(whole)


def chat_ids(served: Served, messages: list[dict[str, Any]], **fields: Any) -> int:
    return len(served.answer("/tokenize", {"messages": messages, **fields})["tokens"])


def test_a_conversation_becomes_the_prompt_that_a_chat_would_be(served: Served):
    use = {"type": "tool_use", "id": "c1", "name": "weather", "input": INPUT}
    thought = {"type": "thinking", "thinking": "WHY", "signature": "s"}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sun"}]}
    theirs = [
        {"role": "user", "content": [{"type": "text", "text": "wea"}, {"type": "text", "text": "ther?"}]},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "So:"}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
    ]
    call = {"id": "c1", "function": {"name": "weather", "arguments": json.dumps(INPUT)}}
    ours = [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {"role": "assistant", "content": "So:", "reasoning_content": "WHY", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "user", "content": "and now?"},
    ]
    tools = [{"type": "function", "function": FUNCTION}]
    system = [
        {"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "brief."},
    ]
    asked = {"model": MODEL, "system": system, "tools": [TOOL], "thinking": {"type": "enabled"}}
    switch = {"thinking": {"type": "enabled"}}
    for count, ours_count in ((1, 2), (3, 5)):
        body = {**asked, "messages": theirs[:count]}
        wanted = chat_ids(served, ours[:ours_count], tools=tools, **switch)
        assert served.answer(COUNT, body) == {"input_tokens": wanted}
    begun = [*theirs[:1], {"role": "assistant", "content": "It is"}]
    prefix = {"role": "assistant", "content": "It is", "prefix": True}
    assert served.answer(COUNT, {"model": MODEL, "messages": begun})["input_tokens"] == chat_ids(
        served, [QUESTION, prefix]
    )


def test_both_places_and_both_kinds_of_keys_are_known(served: Served):
    says(served, "hi")
    wanted = named(served.answer(MESSAGES, ASK))
    for headers in ({"x-api-key": "k"}, {"authorization": "Bearer k"}):
        answer = served.post("/anthropic/v1/messages", ASK, headers=headers)
        assert named(answer.json()) == wanted
    terms = [submit.terms["tenant"] for actor in served.actors for submit in actor.submits]
    assert terms.count("") == 1
    assert len(set(terms)) == 2


def test_unknown_fields_are_named_and_one_call_may_be_enough(served: Served):
    says(served, spelled(served.tokenizer, CALL.replace("\n</｜DSML｜function_calls>", "") + CALL.strip()))
    body = {**ASK, "tools": [TOOL], "metadata": {"user_id": "u"}}
    response = served.post(MESSAGES, body)
    assert response.headers["x-ignored-fields"] == "metadata"
    assert len(response.json()["content"]) == 2
    body["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
    assert [block["type"] for block in served.answer(MESSAGES, body)["content"]] == ["tool_use"]


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"model": "other"}, 404, "not_found_error"),
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"max_tokens": 5000}, 400, "invalid_request_error"),
        ({"temperature": 1.5}, 400, "invalid_request_error"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 400, "invalid_request_error"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "invalid_request_error"),
        ({"system": [{"type": "tool_use"}]}, 400, "invalid_request_error"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, "invalid_request_error"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, 400, "invalid_request_error"),
        ({"stop_sequences": [""]}, 400, "invalid_request_error"),
    ],
    ids=str,
)
def test_errors_have_the_shape_that_its_clients_know(served: Served, fields: Any, status: int, kind: str):
    for stream in (False, True):
        response = served.post(MESSAGES, {**ASK, **fields, "stream": stream})
        assert response.status_code == status, response.text
        error = response.json()
        assert error.keys() == {"type", "error"}
        assert (error["type"], error["error"].keys()) == ("error", {"type", "message"})
        assert error["error"]["type"] == kind
    assert served.http.get(MESSAGES).json()["type"] == "error"


def test_an_error_after_the_start_is_an_event(served: Served):
    rest = broken_midway(served, MESSAGES, ASK)
    assert rest[-2] == "event: error"
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["type"] == "api_error"


def test_a_chat_says_the_same_as_a_message(served: Served):
    text = served.answer(MESSAGES, {**ASK, "messages": CHAT["messages"], "max_tokens": 12})["content"][0][
        "text"
    ]
    assert served.answer(CHATS, CHAT)["choices"][0]["message"]["content"] == text
