"""OpenAI's Responses API without a store: the same answers under other names."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ingress.desk import OrderDesk
from tests.unit.app_server import MODEL, Served, broken_midway, check_error, says, spelled

RESPONSES = "/v1/responses"
ASK = {"model": MODEL, "input": "weather?", "temperature": 0, "max_output_tokens": 900}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FORMAT = {"type": "json_schema", "name": "n"}
TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}
CALL = """

<｜DSML｜function_calls>
<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>"""


def streamed(served: Served, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events, numbered without a gap and named as their data says."""
    response = served.post(RESPONSES, {**body, "stream": True})
    assert response.status_code == 200, response.text
    text = response.text.replace(": keep-alive\n\n", "")  # a slow machine
    frames = re.findall(r"event: ([\w.]+)\ndata: (.*)\n\n", text)
    assert text == "".join(f"event: {name}\ndata: {data}\n\n" for name, data in frames)
    events = [json.loads(data) for _, data in frames]
    assert [event["type"] for event in events] == [name for name, _ in frames]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def named(value: Any) -> Any:
    """Without what is never the same."""
    if isinstance(value, list):
        return [named(one) for one in value]
    if not isinstance(value, dict):
        return value
    changing = ("id", "item_id", "call_id", "created_at")
    return {key: "x" if key in changing else named(one) for key, one in value.items()}


@pytest.mark.parametrize("tokens_per_event", [1, 900])
def test_reasoning_text_and_calls_are_items_streamed_or_whole(served: Served, tokens_per_event: int):
    says(served, spelled(served.tokenizer, "hm</think>Let me see." + CALL), tokens_per_event=tokens_per_event)
    body = {**ASK, "tools": [TOOL], "reasoning": {"effort": "high"}}
    whole = served.answer(RESPONSES, body)
    reasoning, message, call = whole["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    text = {"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}
    assert (message["role"], message["content"]) == ("assistant", [text])
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call",
        "weather",
        {"city": "Paris"},
    )
    assert (whole["status"], whole["incomplete_details"], whole["store"]) == ("completed", None, False)
    events = streamed(served, body)
    assert named(events[-1]["response"]) == named(whole)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]


def test_the_pieces_of_a_stream_join_to_its_items(served: Served):
    says(served, spelled(served.tokenizer, "hm</think>so" + CALL))
    events = streamed(served, {**ASK, "tools": [TOOL], "reasoning": {"effort": "low"}})
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    for place, item in enumerate(events[-1]["response"]["output"]):
        own = [event for event in events if event.get("output_index") == place]
        assert own[0]["type"] == "response.output_item.added"
        assert own[0]["item"]["status"] == "in_progress"
        assert own[-1] == {**own[-1], "type": "response.output_item.done", "item": item}
        assert {event.get("item_id", item["id"]) for event in own} == {item["id"]}
        told = "".join(event["delta"] for event in own if "delta" in event)
        assert told == (item["arguments"] if "arguments" in item else item["content"][0]["text"])


def test_what_the_limit_cut_off_is_incomplete(served: Served):
    says(served, "one two")
    cut = served.answer(RESPONSES, {**ASK, "max_output_tokens": 3})
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert cut["output"][0]["content"][0]["text"] == "one"
    events = streamed(served, {**ASK, "max_output_tokens": 3})
    assert events[-1]["type"] == "response.incomplete"
    assert named(events[-1]["response"]) == named(cut)


def test_a_conversation_becomes_the_prompt_that_a_chat_would_be(served: Served):
    desk = OrderDesk(tokenizer=served.tokenizer, model_name=MODEL, context_tokens=8192)
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "WHY"}]}
    calls = [
        {"type": "function_call", "call_id": name, "name": "weather", "arguments": f'{{"city": "{name}"}}'}
        for name in ("a", "b")
    ]
    results = [
        {"type": "function_call_output", "call_id": name, "output": f"sun {name}"} for name in ("b", "a")
    ]
    text = {"role": "assistant", "type": "message", "content": [{"type": "output_text", "text": "So:"}]}
    theirs = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "wea"}, {"type": "input_text", "text": "ther?"}],
        },
        *(thought, text, *calls, *results),
    ]
    ours = [
        {"role": "system", "content": "Answer."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "So:",
            "reasoning_content": "WHY",
            "tool_calls": [
                {"id": call["call_id"], "function": {"name": "weather", "arguments": call["arguments"]}}
                for call in calls
            ],
        },
        *({"role": "tool", "tool_call_id": one["call_id"], "content": one["output"]} for one in results),
    ]
    body = {
        **ASK,
        "instructions": "Answer.",
        "input": theirs,
        "tools": [TOOL],
        "reasoning": {"effort": "low"},
    }
    function = {"name": "weather", "parameters": SCHEMA}
    chat = {
        "model": MODEL,
        "messages": ours,
        "tools": [{"type": "function", "function": function}],
        "reasoning_effort": "low",
    }
    order, told = desk.responses(json.dumps(body).encode())
    assert order.prompts == desk.chat(json.dumps(chat).encode()).prompts
    assert (told["instructions"], told["tools"]) == ("Answer.", [TOOL])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        ({"input": "x" * 9000}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"text": {"format": {**FORMAT, "schema": {"type": 1}}}}, "text.format.schema.type"),
        ({"text": {"format": {**FORMAT, "schema": {"pattern": "(?=a)"}}}}, "text.format.schema"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_not_served_is_refused(served: Served, fields: dict[str, Any], param: str):
    assert str(check_error(served.post(RESPONSES, {**ASK, **fields}), 400)["param"]).startswith(param)


def test_an_error_after_the_start_is_an_event(served: Served):
    rest = broken_midway(served, RESPONSES, ASK)
    assert rest[-2] == "event: error"
    assert json.loads(rest[-1].removeprefix("data: "))["code"] == "server_error"
