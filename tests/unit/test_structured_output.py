"""What is asked for comes, through the whole application, or is refused by name."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from actors.attention import AttentionServer, ViewInbox
from ingress.app import create_app
from ingress.compiler import CompileLimits, GrammarCompiler
from ingress.engine_client import EngineClient
from ingress.link import Endpoint
from ingress.tokens import Tokenizer
from model.grammar import Grammars
from tests.shoals import engine_of, local_parts
from tests.unit.app_server import check_error, events_of, streamed
from tests.unit.loopback_engine import FIRST_BYTE_ID, TOKEN, Background, http_server
from tests.unit.test_tool_calls import calls_in, functions

CONTEXT = 4096
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "x"}
ASK: dict[str, Any] = {"model": "tiny", "messages": [USER], "seed": 3, "max_tokens": 300}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("pong", "ping")]
BLOW_UP = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(400)}}


class Colour(BaseModel):
    name: Literal["red", "green"]
    parts: list[Annotated[int, Field(ge=0, le=255)]] = Field(max_length=3)


@dataclass
class Door:
    background: Background
    compiler: GrammarCompiler
    servers: list[AttentionServer]
    http: httpx.Client

    def ask(self, **fields: Any) -> httpx.Response:
        return self.http.post(CHAT, json={**ASK, **fields})

    def choice(self, **fields: Any) -> dict[str, Any]:
        response = self.ask(**fields)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    def chunks(self, **fields: Any) -> list[dict[str, Any]]:
        return events_of(self.ask(**fields, stream=True))


@contextmanager
def attention_actor(checkpoint: Path, grammars: Grammars, name: str) -> Iterator[AttentionServer]:
    parts = local_parts(checkpoint, context_tokens=CONTEXT)
    server = AttentionServer(
        engine_of(parts, context_tokens=CONTEXT),
        views=ViewInbox(),
        stopping=threading.Event(),
        actor_id=name,
        incarnation=1,
        token=TOKEN,
        grammars=grammars,
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)


@contextmanager
def door_to(
    checkpoint: Path, tokenizer: Tokenizer, names: tuple[str, ...], limits: CompileLimits | None = None
) -> Iterator[Door]:
    with ExitStack() as stack:
        grammars = Grammars(tokenizer.directory, vocab_size=272, end_ids=[1])
        servers = [stack.enter_context(attention_actor(checkpoint, grammars, name)) for name in names]
        background = Background()
        stack.callback(background.close)
        places = [
            Endpoint(actor_id=name, host=server.host, port=server.port)
            for name, server in zip(names, servers, strict=True)
        ]
        engine = EngineClient(places, token=TOKEN, identity="door", patience_s=5.0)
        compiler = GrammarCompiler(tokenizer.directory, limits)
        app = create_app(
            engine=engine,
            tokenizer=tokenizer,
            model_name="tiny",
            context_tokens=CONTEXT,
            compiler=compiler,
        )
        url = stack.enter_context(http_server(background, app))
        http = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        while len(engine._candidates()) < len(names):
            http.get("/ready")
        yield Door(background, compiler, servers, http)


@pytest.fixture(scope="module")
def door(tiny_v32: Path, tokenizer: Tokenizer) -> Iterator[Door]:
    with door_to(tiny_v32, tokenizer, ("a",)) as door:
        yield door


def json_schema(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **fields}}


def test_every_way_of_asking_is_kept_to(door: Door) -> None:
    few = {"type": "object", "properties": {"a": {"enum": [1, "x"]}}, "required": ["a"]}
    for fields in (
        {"response_format": json_schema(few, strict=True)},
        {"structured_outputs": {"json": few}},
        {"guided_json": json.dumps(few)},
    ):
        Draft202012Validator(few).validate(json.loads(door.choice(**fields)["message"]["content"]))
    assert door.choice(structured_outputs={"regex": "^[0-9]{3}/[a-c]$"})["message"]["content"][3] == "/"
    assert door.choice(guided_choice=["so", "no"])["message"]["content"] in ("so", "no")
    assert door.choice(structured_outputs={"grammar": 'root ::= "a" "b"'})["message"]["content"] == "ab"
    begun = door.choice(response_format={"type": "json_object"}, max_tokens=5)
    assert begun["message"]["content"].startswith("{")
    text = door.http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "guided_regex": "[ab]{3}"})
    assert set(text.json()["choices"][0]["text"]) <= set("ab")


def test_the_sdk_parses_into_pydantic(door: Door) -> None:
    import openai

    told: Any = {**ASK, "temperature": 1.0}
    with openai.OpenAI(base_url=f"{door.http.base_url}/v1", api_key="none", max_retries=0) as client:
        parsed = client.chat.completions.parse(**told, response_format=Colour)
        assert isinstance(parsed.choices[0].message.parsed, Colour)
        with client.chat.completions.stream(**told, response_format=Colour) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed
        answer = client.responses.parse(model="tiny", input="x", text_format=Colour)
        assert isinstance(answer.output_parsed, Colour)
        assert answer.text is not None and answer.text.format is not None
        assert answer.text.format.type == "json_schema"


def test_a_call_that_must_come_comes_and_a_stream_says_the_same(door: Door) -> None:
    fields = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "ping"}}}
    fields["parallel_tool_calls"] = False
    whole = door.choice(**fields)
    assert functions(whole["message"]["tool_calls"]) == [("ping", {})]
    assert (whole["message"]["content"], whole["finish_reason"]) == (None, "tool_calls")
    chunks = door.chunks(**fields)
    assert functions(calls_in(chunks)) == [("ping", {})]
    assert streamed(chunks)[0][3] == "tool_calls"


def test_text_of_a_schema_or_calls_come_where_both_may(door: Door) -> None:
    few = {"type": "object", "properties": {"a": {"enum": [1, "x"]}}, "required": ["a"]}
    fields: dict[str, Any] = {"tools": TOOLS[1:], "response_format": json_schema(few)}
    fields["parallel_tool_calls"] = False
    called = door.choice(**fields, logit_bias={str(FIRST_BYTE_ID + ord("\n")): 100})
    assert functions(called["message"]["tool_calls"]) == [("ping", {})]
    text = door.choice(**fields, logit_bias={str(FIRST_BYTE_ID + ord("{")): 100})["message"]["content"]
    Draft202012Validator(few).validate(json.loads(text))


def test_reasoning_is_free_and_what_follows_is_not(door: Door) -> None:
    fields = {"thinking": {"type": "enabled"}, "structured_outputs": {"choice": ["yes", "no"]}}
    message = door.choice(**fields, seed=2, logit_bias={"6": 3})["message"]
    assert message["reasoning_content"]
    assert message["content"] in ("yes", "no")


def test_what_a_schema_says_in_vain_is_named_in_a_header(door: Door) -> None:
    schema = {"type": "array", "items": {"type": "null"}, "maxItems": 1, "uniqueItems": True}
    response = door.ask(response_format=json_schema(schema))
    assert response.headers["x-ignored-fields"] == "response_format.json_schema.schema.uniqueItems"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"response_format": json_schema({"pattern": "(?=a)"}, strict=True)},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"regex": "(?<=a)b"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: b"}}, "structured_outputs.grammar"),
        ({"guided_grammar": "root = 1"}, "guided_grammar"),
        ({"structured_outputs": {"json": BLOW_UP}}, "structured_outputs.json"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(door: Door, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        assert check_error(door.ask(**fields, stream=stream), 400)["param"] == param
    assert door.choice(guided_choice=["a"])["message"]["content"] == "a"


def test_a_helper_that_dies_is_begun_again(door: Door) -> None:
    assert door.choice(guided_choice=["a"])["message"]["content"] == "a"
    helper = door.compiler._helper
    assert helper is not None
    helper._process.kill()
    assert door.choice(guided_choice=["b"])["message"]["content"] == "b"


def test_a_helper_that_takes_too_long_is_killed_and_begun_again(tiny_v32: Path, tokenizer: Tokenizer) -> None:
    with door_to(tiny_v32, tokenizer, ("a",), CompileLimits(compile_s=1.0)) as door:
        assert door.choice(guided_choice=["a"])["message"]["content"] == "a"
        helper = door.compiler._helper
        assert helper is not None
        helper._process.send_signal(signal.SIGSTOP)
        assert check_error(door.ask(guided_choice=["b"]), 400)["param"] == "guided_choice"
        assert helper._process.returncode is not None
        assert door.choice(guided_choice=["b"])["message"]["content"] == "b"


def test_without_a_helper_what_needs_one_waits_and_nothing_else(tiny_v32: Path, tokenizer: Tokenizer) -> None:
    with door_to(tiny_v32, tokenizer, ("a",), CompileLimits(memory_bytes=1 << 20)) as door:
        response = door.ask(guided_choice=["a"])
        check_error(response, 503)
        assert int(response.headers["retry-after"]) >= 1
        assert door.choice(max_tokens=2)["finish_reason"] == "length"


def test_the_death_of_its_actor_changes_nothing(tiny_v32: Path, tokenizer: Tokenizer) -> None:
    told = {"structured_outputs": {"regex": "[a-z]{150}"}, "max_tokens": 200}
    with door_to(tiny_v32, tokenizer, ("a", "b")) as door:
        whole = door.choice(**told)["message"]["content"]
        with door.http.stream("POST", CHAT, json={**ASK, **told, "stream": True}) as response:
            lines = response.iter_lines()
            said = list(islice(lines, 20))
            busy = [server for server in door.servers if server.stats()["running"]]
            assert len(busy) == 1, "it still runs"
            busy[0].stop()
            said += list(lines)
        chunks = [json.loads(line[6:]) for line in said if line.startswith("data: {")]
        assert streamed(chunks)[0][1] == whole
        assert len(whole) == 150
