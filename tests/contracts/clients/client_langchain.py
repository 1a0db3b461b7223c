"""langchain-openai against the served model."""

from __future__ import annotations

import asyncio

import openai
import pytest
from common import BASE, KEY, MODEL, QUESTION, STREAMS, TOOL, Trip
from langchain_openai import ChatOpenAI


def chat(**options) -> ChatOpenAI:
    settings = {"model": MODEL, "base_url": BASE, "api_key": KEY, "temperature": 0, "max_retries": 0}
    return ChatOpenAI(**{**settings, **options})


def test_a_stream_says_what_the_answer_says():
    whole = chat().invoke(QUESTION)
    chunks = list(chat(stream_usage=True).stream(QUESTION))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.content == whole.content == "42"
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_a_tool_is_called_in_a_stream_as_without():
    bound = chat().bind_tools([TOOL], tool_choice="weather", parallel_tool_calls=False)
    [call] = bound.invoke(QUESTION).tool_calls
    chunks = list(bound.stream(QUESTION))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    [streamed] = total.tool_calls
    assert (call["name"], call["args"]) == (streamed["name"], streamed["args"])
    assert call["args"]["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_is_parsed_into_pydantic(method):
    assert isinstance(chat().with_structured_output(Trip, method=method).invoke(QUESTION), Trip)


def test_reasoning_does_not_get_into_the_answer():
    thinking = chat(extra_body={"thinking": {"type": "enabled"}})
    whole = thinking.invoke(QUESTION)
    assert whole.content == "42"
    assert whole.usage_metadata["output_token_details"]["reasoning"] > 0
    assert "".join(chunk.content for chunk in thinking.stream(QUESTION)) == "42"


def test_errors_are_of_their_classes():
    with pytest.raises(openai.AuthenticationError):
        chat(api_key="wrong").invoke(QUESTION)
    with pytest.raises(openai.NotFoundError):
        chat(model="other").invoke(QUESTION)
    with pytest.raises(openai.BadRequestError):
        chat(temperature=7).invoke(QUESTION)


def test_half_of_many_streams_may_leave():
    async def one(leaves: bool) -> str:
        said = []
        async for chunk in chat().astream(QUESTION):
            said.append(chunk.content)
            if leaves:
                break
        return "".join(said)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(number % 2 == 1) for number in range(STREAMS)))

    assert set(asyncio.run(all_of_them())[::2]) == {"42"}
