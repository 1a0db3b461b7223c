"""The openai SDK against the served model."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from common import BASE, KEY, LONG, MESSAGES, MODEL, STREAMS, TOOL, Trip

ASK = {"model": MODEL, "messages": MESSAGES, "temperature": 0}


@pytest.fixture(scope="module")
def client():
    with openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_stream_says_what_the_answer_says(client):
    whole = client.chat.completions.create(**ASK, logprobs=True)
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content == "42"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_tool_is_called_in_a_stream_as_without(client, choice):
    asked = {**ASK, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    [call] = client.chat.completions.create(**asked).choices[0].message.tool_calls
    with client.chat.completions.stream(**asked) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.name == streamed.function.name == "weather"
    assert json.loads(call.function.arguments) == json.loads(streamed.function.arguments)
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_an_answer_is_parsed_into_pydantic(client):
    answer = client.chat.completions.parse(**ASK, response_format=Trip).choices[0].message
    assert isinstance(answer.parsed, Trip)


def test_reasoning_comes_apart_from_the_answer(client):
    asked = {**ASK, "reasoning_effort": "high"}
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.content == "42" and "</think>" not in message.reasoning_content
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert reasoning == message.reasoning_content != ""


def test_what_is_echoed_is_scored_as_it_was_made(client):
    made = client.completions.create(model=MODEL, prompt="17 + 25", max_tokens=9, logprobs=1, temperature=0)
    text = "17 + 25" + made.choices[0].text
    echoed = client.completions.create(model=MODEL, prompt=text, max_tokens=0, logprobs=1, echo=True)
    assert echoed.choices[0].text == text
    scored, own = echoed.choices[0].logprobs, made.choices[0].logprobs
    if scored.tokens[-len(own.tokens) :] == own.tokens:  # else the text is cut otherwise than it was made
        assert scored.token_logprobs[-len(own.tokens) :] == own.token_logprobs


def test_errors_are_of_their_classes(client):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**ASK, "model": "other"})
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**ASK, max_tokens=10**6)
    assert long.value.code == "context_length_exceeded"


def test_half_of_many_streams_may_leave():
    async def one(client: openai.AsyncOpenAI, leaves: bool) -> str:
        said = []
        stream = await client.chat.completions.create(**{**ASK, **LONG}, stream=True)
        async with stream:
            async for chunk in stream:
                said.append(chunk.choices[0].delta.content or "")
                if leaves and len(said) > 1:
                    break
        return "".join(said)

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0) as client:
            return await asyncio.gather(*(one(client, number % 2 == 1) for number in range(STREAMS)))

    said = asyncio.run(all_of_them())
    assert set(said[::2]) == {"42"}
