"""litellm against the served model."""

from __future__ import annotations

import asyncio
import json

import litellm
import pytest
from common import BASE, KEY, LONG, MESSAGES, MODEL, STREAMS, TOOL, Trip

ASK = {
    "model": f"openai/{MODEL}",
    "messages": MESSAGES,
    "temperature": 0,
    "api_base": BASE,
    "api_key": KEY,
    "num_retries": 0,
}


def test_a_stream_says_what_the_answer_says():
    whole = litellm.completion(**ASK)
    chunks = list(litellm.completion(**ASK, stream=True, stream_options={"include_usage": True}))
    again = litellm.stream_chunk_builder(chunks, messages=MESSAGES)
    assert again.choices[0].message.content == whole.choices[0].message.content == "42"
    assert again.usage.completion_tokens == whole.usage.completion_tokens


def test_a_tool_is_called_in_a_stream_as_without():
    asked = {**ASK, "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    [call] = litellm.completion(**asked).choices[0].message.tool_calls
    built = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)), messages=MESSAGES)
    [streamed] = built.choices[0].message.tool_calls
    assert call.function.name == streamed.function.name == "weather"
    assert json.loads(call.function.arguments) == json.loads(streamed.function.arguments)


def test_an_answer_is_parsed_into_pydantic():
    message = litellm.completion(**ASK, response_format=Trip).choices[0].message
    Trip.model_validate_json(message.content)


def test_reasoning_comes_apart_from_the_answer():
    asked = {**ASK, "extra_body": {"thinking": {"type": "enabled"}}}
    message = litellm.completion(**asked).choices[0].message
    assert message.content == "42" and message.reasoning_content
    deltas = [chunk.choices[0].delta for chunk in litellm.completion(**asked, stream=True)]
    assert (
        "".join(getattr(one, "reasoning_content", None) or "" for one in deltas) == message.reasoning_content
    )


def test_text_is_completed_too():
    asked = {**ASK, "prompt": "17 + 25", "max_tokens": 5, "model": f"text-completion-openai/{MODEL}"}
    del asked["messages"]
    assert litellm.text_completion(**asked).choices[0].text


def test_errors_are_of_their_classes():
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**ASK, "api_key": "wrong"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**ASK, "model": "openai/other"})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**{**ASK, "temperature": 7})
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**ASK, max_tokens=10**6)


def test_half_of_many_streams_may_leave():
    async def one(leaves: bool) -> str:
        said = []
        stream = await litellm.acompletion(**ASK, max_tokens=LONG["max_tokens"], stream=True)
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content or "")
            if leaves:
                break
        return "".join(said)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(number % 2 == 1) for number in range(STREAMS)))

    assert set(asyncio.run(all_of_them())[::2]) == {"42"}
