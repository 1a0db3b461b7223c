"""The openai SDK is at home."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.api_page import MODEL as PAGE_MODEL
from tests.unit.api_page import URL, Example, examples
from tests.unit.app_server import CHAT, MODEL, TEXT, Served, says, spelled

if TYPE_CHECKING:
    import openai

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
CALLS = """Two sums.

<｜DSML｜function_calls>
<｜DSML｜invoke name="add">
<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>
<｜DSML｜parameter name="b" string="false">2</｜DSML｜parameter>
</｜DSML｜invoke>
<｜DSML｜invoke name="add">
<｜DSML｜parameter name="a" string="true">3</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>"""
ARGUMENTS = [{"a": 1, "b": 2}, {"a": 3}]


@pytest.fixture(scope="module")
def client(served_once: Served) -> Iterator[openai.OpenAI]:
    import openai  # late: a second, which one process pays

    with openai.OpenAI(base_url=f"{served_once.http.base_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_chats_and_completions(served: Served, client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [MODEL]
    chat = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    text = chat.choices[0].message.content
    assert len(chat.choices[0].logprobs.content) == chat.usage.completion_tokens == 12
    stream = client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage == chat.usage
    whole = client.completions.create(**TEXT)
    pieces = client.completions.create(**TEXT, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_errors_are_of_the_classes_that_the_sdk_has_for_them(served: Served, client: openai.OpenAI):
    import openai

    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(**{**TEXT, "model": "other"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**CHAT, "temperature": 5})
    assert (refused.value.param, refused.value.type) == ("temperature", "invalid_request_error")
    schema = {"type": "array", "uniqueItems": True}
    described: Any = {"name": "set", "strict": True, "schema": schema}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            **CHAT, response_format={"type": "json_schema", "json_schema": described}
        )
    assert refused.value.code == "unsupported_parameter"
    assert refused.value.param == "response_format.json_schema.schema.uniqueItems"


@pytest.mark.parametrize("tokens_per_event", [1, 50])
def test_tools_are_called_in_a_stream_as_without(
    served: Served, client: openai.OpenAI, tokens_per_event: int
):
    says(served, spelled(served.tokenizer, CALLS), tokens_per_event=tokens_per_event)
    asked: dict[str, Any] = {**CHAT, "max_tokens": 900, "tools": [TOOL]}
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.content == "Two sums."
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == ARGUMENTS
    with client.chat.completions.stream(**asked) as stream:  # the SDK's own putting together
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "Two sums."
    assert [json.loads(call.function.arguments) for call in final.message.tool_calls] == ARGUMENTS
    results = [{"role": "tool", "tool_call_id": c.id, "content": "3"} for c in final.message.tool_calls]
    following = [*CHAT["messages"], final.message, *results]
    assert client.chat.completions.create(**{**asked, "messages": following}).choices


def test_responses_are_at_home_too(served: Served, client: openai.OpenAI):
    says(served, spelled(served.tokenizer, CALLS), tokens_per_event=7)
    asked: dict[str, Any] = {
        "model": MODEL,
        "input": "sums?",
        "tools": [{"type": "function", **TOOL["function"]}],
    }
    response = client.responses.create(**asked)
    assert response.output_text == "Two sums."
    calls = [item for item in response.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == ARGUMENTS
    with client.responses.stream(**asked) as stream:  # the SDK's own putting together
        final = stream.get_final_response()
    assert final.output_text == "Two sums."
    assert [json.loads(item.arguments) for item in final.output[1:]] == ARGUMENTS
    results = [{"type": "function_call_output", "call_id": c.call_id, "output": "3"} for c in calls]
    following = [
        {"role": "user", "content": "sums?"},
        *(item.to_dict() for item in response.output),
        *results,
    ]
    assert client.responses.create(**{**asked, "input": following}).status == "completed"


def test_reasoning_comes_where_clients_of_deepseek_look(served: Served, client: openai.OpenAI):
    says(served, spelled(served.tokenizer, "let me see</think>yes"))
    asked: dict[str, Any] = {**CHAT, "max_tokens": 50, "extra_body": {"thinking": {"type": "enabled"}}}
    message = client.chat.completions.create(**asked).choices[0].message
    assert (message.reasoning_content, message.content) == ("let me see", "yes")
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "let me see"


@pytest.mark.parametrize("example", examples("python"), ids=["tools", "pydantic"])
def test_the_example_of_the_page_runs(
    served: Served,
    client: openai.OpenAI,
    example: Example,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    says(served, spelled(served.tokenizer, example.says), tokens_per_event=64)
    script = tmp_path / "example.py"
    url = str(served.http.base_url).rstrip("/")
    script.write_text(example.asked.replace(URL, url).replace(PAGE_MODEL, MODEL))
    runpy.run_path(str(script))
    assert capsys.readouterr().out == example.shown
