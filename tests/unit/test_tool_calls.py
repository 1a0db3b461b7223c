"""Tool calls over HTTP: parsed, streamed, sent back, and never in the way of plain text."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from ingress.specials import DSML
from tests.unit.app_server import CHAT, MODEL, Served, check_error, says, spelled, streamed, validate

CHATS = "/v1/chat/completions"
QUESTION = {"role": "user", "content": "weather?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}
ASK = {"model": MODEL, "messages": [QUESTION], "tools": [WEATHER], "temperature": 0, "max_tokens": 900}


def parameter(name: str, value: str, is_string: str = "true") -> str:
    return f'<｜DSML｜parameter name="{name}" string="{is_string}">{value}</｜DSML｜parameter>'


def block(*parameters: Sequence[str]) -> str:
    invokes = "\n".join(
        '<｜DSML｜invoke name="weather">\n' + "\n".join(own) + "\n</｜DSML｜invoke>" for own in parameters
    )
    return f"\n\n<｜DSML｜function_calls>\n{invokes}\n</｜DSML｜function_calls>"


PARIS = [parameter("city", 'Paris "é</tag>\U0001f600'), parameter("days", "3", "false")]
PARIS_ARGUMENTS = {"city": 'Paris "é</tag>\U0001f600', "days": 3}
ROME = [parameter("city", "Rome"), parameter("days", "2")]
ROME_ARGUMENTS = {"city": "Rome", "days": 2}

WRITTEN: dict[str, tuple[str, str | None, list[Any], str]] = {
    "a call": (block(PARIS), None, [PARIS_ARGUMENTS], "tool_calls"),
    "two calls": (block(PARIS, ROME), None, [PARIS_ARGUMENTS, ROME_ARGUMENTS], "tool_calls"),
    "text and a call": ("Let me see." + block(ROME), "Let me see.", [ROME_ARGUMENTS], "tool_calls"),
    "no arguments": (block([]), None, [{}], "tool_calls"),
    "no call": ("a < b\n\n", "a < b\n\n", [], "stop"),
    "half a call": ("So" + block(ROME)[:90], "So" + block(ROME)[:90].replace(DSML.text, ""), [], "stop"),
    "damage": (
        block(ROME).replace("invoke ", "i "),
        block(ROME).replace("invoke ", "i ").replace(DSML.text, ""),
        [],
        "stop",
    ),
}


def writes(served: Served, text: str, **settings: Any) -> None:
    says(served, spelled(served.tokenizer, text), **settings)


def calls_in(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """The calls of a choice as a client puts them together; checks the order of their parts."""
    calls: list[dict[str, Any]] = []
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        for part in choice["delta"].get("tool_calls", []):
            if "id" in part:
                assert part["index"] == len(calls)
                assert part["function"] == {"name": part["function"]["name"], "arguments": ""}
                calls.append({key: part[key] for key in ("id", "type", "function")})
            else:
                assert part["index"] == len(calls) - 1
                function = calls[-1]["function"]
                calls[-1]["function"] = {
                    **function,
                    "arguments": function["arguments"] + part["function"]["arguments"],
                }
    return calls


def functions(calls: list[dict[str, Any]]) -> list[Any]:
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in calls)
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]


@pytest.mark.parametrize("tokens_per_event", [1, 7, 900])
@pytest.mark.parametrize(("written", "content", "arguments", "finish"), WRITTEN.values(), ids=WRITTEN.keys())
def test_calls_are_parsed_and_a_stream_says_the_same(
    served: Served,
    written: str,
    content: str | None,
    arguments: list[Any],
    finish: str,
    tokens_per_event: int,
):
    writes(served, written, tokens_per_event=tokens_per_event)
    choice = served.answer(CHATS, ASK)["choices"][0]
    assert choice["message"]["content"] == content
    assert functions(choice["message"].get("tool_calls", [])) == [("weather", one) for one in arguments]
    assert choice["finish_reason"] == finish
    chunks = served.chunks(CHATS, ASK)
    assert functions(calls_in(chunks)) == functions(choice["message"].get("tool_calls", []))
    assert streamed(chunks)[0] == ("", content or "", [], finish)


def test_answers_and_chunks_with_calls_are_openais(served: Served):
    writes(served, "so" + block(PARIS, ROME), tokens_per_event=7)
    validate(served.answer(CHATS, ASK), "CreateChatCompletionResponse")
    for chunk in served.chunks(CHATS, ASK):
        validate(chunk, "CreateChatCompletionStreamResponse")


def test_a_call_cut_off_by_the_limit_is_text_of_a_length(served: Served):
    writes(served, block(PARIS, ROME))
    cut = served.answer(CHATS, {**ASK, "max_tokens": len(spelled(served.tokenizer, block(PARIS, ROME))) - 60})
    choice = cut["choices"][0]
    assert functions(choice["message"]["tool_calls"]) == [("weather", PARIS_ARGUMENTS)]
    assert "Rome" in choice["message"]["content"]
    assert choice["finish_reason"] == "length"


def test_ids_of_calls_are_unique(served: Served):
    writes(served, block(PARIS, ROME), tokens_per_event=50)
    whole = served.answer(CHATS, {**ASK, "n": 3})
    chunks = served.chunks(CHATS, {**ASK, "n": 3})
    ids = [call["id"] for choice in whole["choices"] for call in choice["message"]["tool_calls"]]
    ids += [call["id"] for index in range(3) for call in calls_in(chunks, index)]
    assert len(set(ids)) == len(ids) == 12


def test_one_call_at_most_where_parallel_calls_are_not_wanted(served: Served):
    writes(served, "ab" + block(PARIS, ROME) + "x" * 2000, tokens_per_event=8, pause_s=0.002)
    body = {**ASK, "parallel_tool_calls": False, "stop": ["abc"], "max_tokens": 2500}
    choice = served.answer(CHATS, body)["choices"][0]
    assert choice["message"]["content"] == "ab"
    assert functions(choice["message"]["tool_calls"]) == [("weather", PARIS_ARGUMENTS)]
    assert choice["finish_reason"] == "tool_calls"
    served.until(lambda: sum(len(actor.cancelled) for actor in served.actors) == 1)
    chunks = served.chunks(CHATS, body)
    assert functions(calls_in(chunks)) == [("weather", PARIS_ARGUMENTS)]
    assert streamed(chunks)[0][1] == "ab"


def test_a_stop_string_is_looked_for_in_text_and_not_in_calls(served: Served):
    writes(served, "a\nb" + block(ROME))
    inside = served.answer(CHATS, {**ASK, "stop": ["Rome", "\n\n"]})["choices"][0]
    assert functions(inside["message"]["tool_calls"]) == [("weather", ROME_ARGUMENTS)]
    before = served.answer(CHATS, {**ASK, "stop": "\n"})["choices"][0]
    assert (before["message"]["content"], before["finish_reason"]) == ("a", "stop")
    assert "tool_calls" not in before["message"]


@pytest.mark.parametrize("fields", [{"tools": None}, {"tool_choice": "none"}], ids=str)
def test_nothing_is_a_call_where_none_may_be_called(served: Served, fields: dict[str, Any]):
    writes(served, block(ROME))
    choice = served.answer(CHATS, {**ASK, **fields})["choices"][0]
    assert choice["message"]["content"] == block(ROME).replace(DSML.text, "")
    assert choice["finish_reason"] == "stop"
    plain = served.answer("/tokenize", {"messages": [QUESTION]})["tokens"]
    assert (
        served.answer("/tokenize", {"messages": [QUESTION], "tools": [WEATHER], **fields})["tokens"] == plain
    )


def test_a_call_in_reasoning_is_reasoning(served: Served):
    writes(served, "hm" + block(PARIS) + "</think>so" + block(ROME))
    body = {**ASK, "thinking": {"type": "enabled"}}
    message = served.answer(CHATS, body)["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "hm" + block(PARIS).replace(DSML.text, "")
    assert message["content"] == "so"
    assert functions(message["tool_calls"]) == [("weather", ROME_ARGUMENTS)]
    chunks = served.chunks(CHATS, body)
    assert streamed(chunks)[0][:2] == (message["reasoning_content"], "so")
    told = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert [one.get("reasoning") for one in told] == [one.get("reasoning_content") for one in told]


def test_every_token_of_a_call_is_counted_and_told(served: Served):
    ids = spelled(served.tokenizer, "so" + block(ROME))
    says(served, ids)
    body = {**ASK, "logprobs": True, "return_token_ids": True}
    whole = served.answer(CHATS, body)
    chunks = served.chunks(CHATS, {**body, "stream_options": {"include_usage": True}})
    choice = whole["choices"][0]
    assert choice["token_ids"][: len(ids)] == ids == streamed(chunks)[0][2][: len(ids)]
    assert (
        len(choice["logprobs"]["content"]) == len(choice["token_ids"]) == whole["usage"]["completion_tokens"]
    )
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize("drop_after", [3, 60, 200])
def test_a_call_survives_the_loss_of_the_actor_that_writes_it(served: Served, drop_after: int):
    writes(served, "so" + block(PARIS, ROME), tokens_per_event=3)
    for actor in served.actors:
        actor.drop_after = drop_after
    chunks = served.chunks(CHATS, ASK)
    assert any(actor.drop_after is None for actor in served.actors)  # it did happen
    assert [arguments for _, arguments in functions(calls_in(chunks))] == [PARIS_ARGUMENTS, ROME_ARGUMENTS]
    assert streamed(chunks)[0] == ("", "so", [], "tool_calls")
    served.until(lambda: len(served.engine._candidates()) == 2)


def test_text_is_streamed_until_a_call_begins(served: Served):
    writes(served, "one two" + block(ROME))
    chunks = served.chunks(CHATS, ASK)
    texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    assert [text for text in texts if text] == list("one two")


def test_a_stream_that_writes_a_long_call_says_that_it_lives(served: Served):
    writes(served, block(PARIS), tokens_per_event=40, pause_s=0.08)
    response = served.post(CHATS, {**ASK, "stream": True})
    assert b"\n\n: keep-alive\n\n" in response.content


def test_tools_may_come_in_a_message(served: Served):
    writes(served, block(ROME))
    messages = [{"role": "system", "content": "", "tools": [WEATHER]}, QUESTION]
    message = served.answer(CHATS, {**CHAT, "messages": messages, "max_tokens": 900})["choices"][0]["message"]
    assert functions(message["tool_calls"]) == [("weather", ROME_ARGUMENTS)]
    bad = [{**messages[0], "tools": [{"type": "function", "function": {}}]}, QUESTION]
    error = check_error(served.post(CHATS, {**CHAT, "messages": bad}), 400)
    assert error["param"] == "messages[0].tools[0].function.name"


# The next turn


def prompt_of(served: Served, messages: list[dict[str, Any]], **fields: Any) -> list[int]:
    return served.answer("/tokenize", {"messages": messages, "tools": [WEATHER], **fields})["tokens"]


@pytest.mark.parametrize("thinking", [False, True])
def test_an_answer_sent_back_is_what_the_model_wrote_token_for_token(served: Served, thinking: bool):
    """So the prefix cache finds the whole turn, and the model sees its own words."""
    said = ("because</think>" if thinking else "") + "Let me see." + block(PARIS, [parameter("city", "Rome")])
    ids = spelled(served.tokenizer, said)
    says(served, ids)
    switch = {"chat_template_kwargs": {"thinking": thinking}}
    message = served.answer(CHATS, {**ASK, **switch})["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"result {place}"}
        for place, call in enumerate(message["tool_calls"])
    ]
    first = prompt_of(served, [QUESTION], **switch)
    following = prompt_of(served, [QUESTION, message, *results], **switch)
    assert following[: len(first) + len(ids)] == first + ids
    assert prompt_of(served, [QUESTION, message, *results[::-1]], **switch) == following


def test_reasoning_is_kept_between_calls_and_dropped_at_the_next_question(served: Served):
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turn = {"role": "assistant", "content": None, "reasoning_content": "WHY", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c", "content": "sun"}
    answer = {"role": "assistant", "content": "sunny", "reasoning": "THUS"}

    def shown(*messages: dict[str, Any]) -> str:
        ids = prompt_of(served, [QUESTION, turn, result, *messages], thinking={"type": "enabled"})
        return served.answer("/detokenize", {"tokens": ids})["prompt"]

    assert "WHY</think>" in shown()
    assert shown().endswith("</function_results>\n\n<think>")
    assert "WHY" not in shown(answer, QUESTION)
    assert "THUS" not in shown(answer, QUESTION)
    assert shown(answer, QUESTION).endswith("<think>")
    error = check_error(
        served.post(
            CHATS,
            {
                **ASK,
                "messages": [QUESTION, {"role": "assistant", "content": "x", "prefix": True}],
                "thinking": {"type": "enabled"},
            },
        ),
        400,
    )
    assert error["param"] == "messages[1].reasoning_content"
