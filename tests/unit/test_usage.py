"""What a client is told of the prefix cache is true to the token."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.attention import AttentionServer, ViewInbox
from ingress.app import create_app
from ingress.engine_client import EngineClient
from ingress.link import Endpoint
from ingress.tokens import Tokenizer
from tests.shoals import CONTEXT, local_engine
from tests.unit.loopback_engine import TOKEN, Background, LoopbackEngine, http_server, saying

PAGE = 64
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = "what do they keep? " * 12


@dataclass
class Door:
    """The real application in front of two attention actors."""

    engine: EngineClient
    http: httpx.Client

    def ask(self, path: str, **fields: Any) -> dict[str, Any]:
        """The usage; of a stream, that of its last chunk."""
        body = {"model": "tiny", "max_tokens": 3, "temperature": 0, "ignore_eos": True, **fields}
        if fields.get("stream"):
            body["stream_options"] = {"include_usage": True}
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        if not fields.get("stream"):
            return response.json()["usage"]
        frames = [line.removeprefix("data: ") for line in response.text.split("\n\n")]
        chunks = [json.loads(frame) for frame in frames if frame.startswith("{")]
        assert all(chunk.get("usage") is None for chunk in chunks[:-1])
        return chunks[-1]["usage"]

    def cached(self, path: str, **fields: Any) -> int:
        """Tokens of the prompt that were cached; the three ways of saying so agree."""
        usage = self.ask(path, **fields)
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert usage["prompt_cache_hit_tokens"] == cached
        assert usage["prompt_cache_miss_tokens"] == usage["prompt_tokens"] - cached
        return cached


@contextmanager
def door_to(background: Background, tokenizer: Tokenizer, places: list[Endpoint]) -> Iterator[Door]:
    engine = EngineClient(places, token=TOKEN, identity="door", patience_s=5.0)
    app = create_app(engine=engine, tokenizer=tokenizer, model_name="tiny", context_tokens=CONTEXT)
    with http_server(background, app) as url, httpx.Client(base_url=url, timeout=30) as http:
        while len(engine._candidates()) < len(places):
            http.get("/ready")
        yield Door(engine, http)


@contextmanager
def attention_actor(directory: Path, name: str) -> Iterator[Endpoint]:
    server = AttentionServer(
        local_engine(directory),
        views=ViewInbox(),
        stopping=threading.Event(),
        actor_id=name,
        incarnation=1,
        token=TOKEN,
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield Endpoint(actor_id=name, host=server.host, port=server.port)
    finally:
        server.stop()
        thread.join(10)


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


@pytest.fixture(scope="module")
def door(tiny_v32: Path, background: Background, tokenizer: Tokenizer) -> Iterator[Door]:
    with ExitStack() as stack:
        places = [stack.enter_context(attention_actor(tiny_v32, name)) for name in ("a", "b")]
        yield stack.enter_context(door_to(background, tokenizer, places))


def pages(num_tokens: int) -> int:
    """Tokens of the full pages before the last token."""
    return (num_tokens - 1) // PAGE * PAGE


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_the_second_time_all_full_pages_are_told_as_cached(door: Door, path: str, stream: bool):
    text = f"{path} {stream} {QUESTION}"
    asked = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    first = door.ask(path, stream=stream, **asked)
    assert first["prompt_cache_hit_tokens"] == 0
    assert door.cached(path, stream=stream, **asked) == pages(first["prompt_tokens"]) > PAGE


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 128, 129])
def test_it_is_true_at_the_edges_of_pages(door: Door, num_tokens: int):
    prompt = [20 + num_tokens % 200] * num_tokens
    assert [door.cached(TEXT, prompt=prompt) for _ in range(3)] == [0, *[pages(num_tokens)] * 2]


def test_a_conversation_finds_the_answers_of_its_earlier_turns(door: Door):
    prompt = [30] * 60
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 30, "ignore_eos": True, "return_token_ids": True}
    answer = door.http.post(TEXT, json=body).json()["choices"][0]["token_ids"]
    whole = [*prompt, *answer]
    assert door.cached(TEXT, prompt=[*whole, 31, 32]) == pages(len(whole)) == PAGE


def test_a_prompt_is_counted_once_for_all_its_choices_and_as_computed_if_any_did(door: Door):
    prompts = [[40] * 100, [41] * 200]
    usage = door.ask(TEXT, prompt=prompts, n=2)
    assert (usage["prompt_tokens"], usage["prompt_cache_hit_tokens"]) == (300, 0)
    assert usage["completion_tokens"] == 12
    assert door.cached(TEXT, prompt=prompts, n=2) == PAGE + 3 * PAGE


def test_another_salt_finds_nothing(door: Door):
    prompt = [50] * 150
    assert door.cached(TEXT, prompt=prompt) == 0
    for salt in ("tenant", "other", "\0"):
        assert door.cached(TEXT, prompt=prompt, cache_salt=salt) == 0
        assert door.cached(TEXT, prompt=prompt, cache_salt=salt) == 2 * PAGE
    assert door.cached(TEXT, prompt=prompt, cache_salt="") == 2 * PAGE


def test_another_key_finds_nothing(door: Door):
    """A key that is not checked makes a tenant as one that is: tests/unit/test_keys.py."""
    prompt = [51] * 150
    for key in ("Bearer a", "Bearer b", "Bearer A"):
        door.http.headers["authorization"] = key
        assert door.cached(TEXT, prompt=prompt) == 0
        assert door.cached(TEXT, prompt=prompt) == 2 * PAGE
    del door.http.headers["authorization"]


@pytest.mark.parametrize("salt", ["s" * 129, 7, ["s"]])
def test_a_salt_that_is_none_is_refused(door: Door, salt: Any):
    body = {"model": "tiny", "prompt": "x", "cache_salt": salt}
    response = door.http.post(TEXT, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "cache_salt")


def test_half_a_character_as_salt_is_refused(door: Door):
    content = rb'{"model": "tiny", "prompt": "x", "cache_salt": "\ud800"}'
    response = door.http.post(TEXT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400


@pytest.mark.parametrize("drop_after", [1, 5])
def test_after_a_failover_what_the_first_prefill_found_is_told(
    background: Background, tokenizer: Tokenizer, drop_after: int
):
    """The second actor has another figure: the client's prompt was not computed again for its sake."""
    actors = [LoopbackEngine(actor_id=name, num_cached=cached) for name, cached in (("a", 64), ("b", 128))]
    actors[0].drop_after = drop_after
    for actor in actors:
        actor.next_id = saying("x" * 40)
    with door_to(background, tokenizer, [background.run(actor.start()) for actor in actors]) as door:
        assert door.cached(TEXT, prompt=[60] * 200, max_tokens=20) == 64
        assert len(actors[1].submits) == 1
    for actor in actors:
        background.run(actor.stop())
