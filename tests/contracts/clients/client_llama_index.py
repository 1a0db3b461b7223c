"""llama-index's OpenAILike against the served model."""

from __future__ import annotations

import asyncio

import openai
import pytest
from common import BASE, KEY, MODEL, QUESTION, STREAMS, Trip
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

MESSAGES = [ChatMessage(role="user", content=QUESTION)]


def llm(**options) -> OpenAILike:
    settings = {
        "model": MODEL,
        "api_base": BASE,
        "api_key": KEY,
        "temperature": 0.0,
        "max_retries": 0,
        "context_window": 2048,
        "is_chat_model": True,
        "is_function_calling_model": True,
        "should_use_structured_outputs": True,
    }
    return OpenAILike(**{**settings, **options})


def look(far: bool) -> str:
    """Look around."""
    return "far" if far else "near"


def test_a_stream_says_what_the_answer_says():
    whole = llm().chat(MESSAGES).message.content
    assert "".join(chunk.delta for chunk in llm().stream_chat(MESSAGES)) == whole == "42"


def test_text_is_completed_too():
    text = llm(is_chat_model=False, max_tokens=6)
    whole = text.complete("17 + 25").text
    assert "".join(chunk.delta for chunk in text.stream_complete("17 + 25")) == whole


def test_a_tool_is_called():
    tool = FunctionTool.from_defaults(look)
    asked = {"tools": [tool], "user_msg": QUESTION, "tool_required": True, "allow_parallel_tool_calls": False}
    [call] = llm().get_tool_calls_from_response(llm().chat_with_tools(**asked))
    *_, last = llm().stream_chat_with_tools(**asked)
    [streamed] = llm().get_tool_calls_from_response(last)
    assert (call.tool_name, call.tool_kwargs) == (streamed.tool_name, streamed.tool_kwargs)


def test_an_answer_is_parsed_into_pydantic():
    assert isinstance(llm().as_structured_llm(Trip).chat(MESSAGES).raw, Trip)


def test_reasoning_does_not_get_into_the_answer():
    thinking = llm(additional_kwargs={"extra_body": {"thinking": {"type": "enabled"}}})
    assert thinking.chat(MESSAGES).message.content == "42"
    assert "".join(chunk.delta or "" for chunk in thinking.stream_chat(MESSAGES)) == "42"


def test_errors_are_of_their_classes():
    with pytest.raises(openai.AuthenticationError):
        llm(api_key="wrong").chat(MESSAGES)
    with pytest.raises(openai.NotFoundError):
        llm(model="other").chat(MESSAGES)
    with pytest.raises(openai.BadRequestError):
        llm(temperature=1.0, additional_kwargs={"top_p": 7}).chat(MESSAGES)


def test_half_of_many_streams_may_leave():
    async def one(leaves: bool) -> str:
        said = []
        async for chunk in await llm().astream_chat(MESSAGES):
            said.append(chunk.delta or "")
            if leaves:
                break
        return "".join(said)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(number % 2 == 1) for number in range(STREAMS)))

    assert set(asyncio.run(all_of_them())[::2]) == {"42"}
