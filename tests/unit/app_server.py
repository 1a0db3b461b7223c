"""The application over real sockets, before an engine without a model.

What tests of the endpoint share: the server, requests to it, streams read to the last byte, OpenAI's schemas.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from ingress.app import create_app
from ingress.engine_client import EngineClient
from ingress.limits import Limits
from ingress.specials import TEMPLATE_SPECIALS
from ingress.tokenizer_file import write_byte_tokenizer
from ingress.tokens import Tokenizer
from tests.unit.loopback_engine import (
    TOKEN,
    Background,
    LoopbackEngine,
    hashed,
    http_server,
    saying,
)

MODEL = "org/tiny"
SCHEMAS = Path(
    os.environ.get("SHOAL_OPENAI_SCHEMAS", Path(__file__).parents[3] / "shared/openai/schemas.json")
)
CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 12,
    "temperature": 0,
}
TEXT = {"model": MODEL, "prompt": "hello", "max_tokens": 12, "temperature": 0}
PLAIN: dict[str, Any] = {"verify": False, "trust_env": False}  # no certificates: loading them takes 0.1 s
LIMITS = Limits(body_bytes=1 << 20, keep_alive_s=0.15, open_sequences=64)


@dataclass
class Served:
    """One application and its two attention actors, all on real sockets."""

    background: Background
    actors: list[LoopbackEngine]
    engine: EngineClient
    tokenizer: Tokenizer
    http: httpx.Client
    app: FastAPI

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def chunks(self, path: str, body: Any) -> list[dict[str, Any]]:
        return events_of(self.post(path, {**body, "stream": True}))

    def calm(self) -> None:
        """Its actors are as they were in the beginning."""
        for actor in self.actors:
            actor.next_id, actor.tokens_per_event, actor.pause_s = hashed, 1, 0.0
            actor.drop_after, actor.fail, actor.mute, actor.refuse = None, False, False, False
            actor.cancelled.clear()
            actor.submits.clear()

    def until(self, condition) -> None:
        async def wait() -> None:
            async with asyncio.timeout(30):
                while not condition():
                    await asyncio.sleep(0.002)

        self.background.run(wait())


@contextmanager
def app_server(directory: Path) -> Iterator[Served]:
    write_byte_tokenizer(directory)
    tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
    background = Background()
    actors = [LoopbackEngine(actor_id="attention-0"), LoopbackEngine(actor_id="attention-1")]
    places = [background.run(actor.start()) for actor in actors]
    engine = EngineClient(places, token=TOKEN, identity="door-0", patience_s=5.0)
    app = create_app(engine=engine, tokenizer=tokenizer, model_name=MODEL, context_tokens=4096, limits=LIMITS)
    with http_server(background, app) as url, httpx.Client(base_url=url, timeout=30, **PLAIN) as http:
        served = Served(background, actors, engine, tokenizer, http, app)
        served.until(lambda: len(engine._candidates()) == 2)
        yield served
    for actor in actors:
        background.run(actor.stop())
    background.close()


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which must be well-formed to the last byte."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    frames = response.content.decode("ascii").split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2] if not frame.startswith(":")]


def says(served: Served, text: str | Sequence[int], **settings: Any) -> None:
    for actor in served.actors:
        actor.next_id = saying(text)
        for name, value in settings.items():
            setattr(actor, name, value)


def broken_midway(served: Served, path: str, body: dict[str, Any]) -> list[str]:
    """The lines that still come after every actor has failed in the middle of a stream."""
    says(served, "abcdef" * 100, pause_s=0.01)
    with served.http.stream("POST", path, json={**body, "stream": True}) as response:
        lines = response.iter_lines()
        while not next(lines).startswith("data:"):
            pass
        for actor in served.actors:
            actor.fail = True
        return [line for line in lines if line]


def spelled(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` in which the template's special tokens are meant as such."""
    specials = {special.text: special for special in TEMPLATE_SPECIALS}
    parts = re.split(f"({'|'.join(map(re.escape, specials))})", text)
    return tokenizer.encode_prompt([specials.get(part, part) for part in parts])


def check_error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) < 4096
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def validate(value: Any, name: str) -> None:
    """`value` against OpenAI's own schema; `nullable` there means what OpenAPI 3.0 says."""
    if not SCHEMAS.exists():
        pytest.skip(f"OpenAI's schemas are not at {SCHEMAS} (SHOAL_OPENAI_SCHEMAS names another place)")
    is_open = (
        name == "CreateCompletionResponse"
        and value["choices"]
        and value["choices"][0]["finish_reason"] is None
    )
    validator_of(name, bool(is_open)).validate(value)


@functools.cache
def validator_of(name: str, is_open: bool) -> Draft202012Validator:
    """is_open: a piece of a stream whose choice has no finish_reason yet."""
    root = _nullable(json.loads(SCHEMAS.read_text()))
    if is_open:
        choice = root["components"]["schemas"][name]["properties"]["choices"]["items"]
        choice["properties"]["finish_reason"] = {"type": "null"}  # the schema forgets its own stream
    return Draft202012Validator({**root, "$ref": f"#/components/schemas/{name}"})


def _nullable(node: Any) -> Any:
    if isinstance(node, list):
        return [_nullable(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _nullable(value) for key, value in node.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain


def streamed(chunks: list[dict[str, Any]]) -> dict[int, tuple[str, str, list[int], str | None]]:
    """Per choice: reasoning, text, token ids, finish."""
    told: dict[int, tuple[str, str, list[int], str | None]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        reasoning, text, ids, finish = told.get(choice["index"], ("", "", [], None))
        delta = choice.get("delta", {})
        told[choice["index"]] = (
            reasoning + delta.get("reasoning_content", ""),
            text + (delta.get("content", "") if "delta" in choice else choice["text"]),
            ids + choice.get("token_ids", []),
            choice["finish_reason"] or finish,
        )
    return told
