"""pydantic-ai against the served model."""

from __future__ import annotations

import asyncio

import pytest
from common import BASE, KEY, MODEL, QUESTION, STREAMS, Trip
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

GREEDY = {"temperature": 0.0}


def model(name: str = MODEL, key: str = KEY) -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=BASE, api_key=key))


def test_a_stream_says_what_the_answer_says():
    agent = Agent(model(), model_settings=GREEDY)
    whole = agent.run_sync(QUESTION)

    async def streamed() -> str:
        async with agent.run_stream(QUESTION) as result:
            return "".join([piece async for piece in result.stream_text(delta=True)])

    assert asyncio.run(streamed()) == whole.output == "42"
    assert whole.usage().output_tokens > 0 if callable(whole.usage) else whole.usage.output_tokens > 0


@pytest.mark.parametrize("kind", [NativeOutput, ToolOutput])
def test_an_answer_is_parsed_into_pydantic(kind):
    agent = Agent(model(), output_type=kind(Trip), model_settings={**GREEDY, "parallel_tool_calls": False})
    assert isinstance(agent.run_sync(QUESTION).output, Trip)


def test_a_tool_is_called_and_its_result_goes_back():
    asked: list[str] = []
    agent = Agent(model(), output_type=[look, ToolOutput(Trip)], model_settings=GREEDY)
    asked.append(type(agent.run_sync(QUESTION).output).__name__)
    assert asked[0] in ("str", "Trip")


def look(far: bool) -> str:
    """Look around."""
    return "far" if far else "near"


def test_reasoning_comes_apart_from_the_answer():
    settings = {**GREEDY, "extra_body": {"thinking": {"type": "enabled"}}}
    result = Agent(model(), model_settings=settings).run_sync(QUESTION)
    assert result.output == "42"
    parts = [part for message in result.all_messages() for part in message.parts]
    assert any(isinstance(part, ThinkingPart) and part.content for part in parts)


@pytest.mark.parametrize(("options", "status"), [({"key": "wrong"}, 401), ({"name": "other"}, 404)])
def test_errors_are_of_their_class(options, status):
    with pytest.raises(ModelHTTPError) as failed:
        Agent(model(**options)).run_sync(QUESTION)
    assert failed.value.status_code == status


def test_a_bad_field_is_a_400():
    with pytest.raises(ModelHTTPError) as failed:
        Agent(model(), model_settings={"temperature": 7.0}).run_sync(QUESTION)
    assert failed.value.status_code == 400


def test_half_of_many_streams_may_leave():
    agent = Agent(model(), model_settings=GREEDY)

    async def one(leaves: bool) -> str:
        said = []
        async with agent.run_stream(QUESTION) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                said.append(piece)
                if leaves:
                    break
        return "".join(said)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(number % 2 == 1) for number in range(STREAMS)))

    assert set(asyncio.run(all_of_them())[::2]) == {"42"}
