"""What the live page asks of the API: passed on as it comes, bounded, and refused in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cluster.admin import AdminServer
from tests.unit.app_server import MODEL, TEXT, Served
from tests.unit.test_admin import KEY, Still


class Before(Still):
    """A cluster whose API is at `url`."""

    def __init__(self, url: str, model: str = MODEL) -> None:
        super().__init__()
        self._url, self._model = url, model

    def snapshot(self) -> dict[str, Any]:
        return {**super().snapshot(), "url": self._url, "model": self._model}


@pytest.fixture
def asked(served: Served) -> Iterator[httpx.Client]:
    server = AdminServer(Before(str(served.http.base_url).rstrip("/")), "127.0.0.1", 0, KEY)
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, verify=False, trust_env=False) as client:
        yield client
    server.close()


def test_the_stream_is_the_apis_own(asked: httpx.Client, served: Served) -> None:
    answer = asked.post("/try", json={"prompt": "hello", "max_tokens": 12})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    text = "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"])
    assert text == served.answer("/v1/completions", {**TEXT, "ignore_eos": True})["choices"][0]["text"]


def test_the_apis_refusal_is_passed_on(served: Served) -> None:
    server = AdminServer(Before(str(served.http.base_url).rstrip("/"), "no-such-model"), "127.0.0.1", 0, KEY)
    try:
        headers = {"authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{server.url}/try", json={"prompt": "x"}, headers=headers, trust_env=False)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    finally:
        server.close()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": ""},
        {"prompt": 7},
        {"prompt": "x" * 4001},
        {"prompt": "x", "max_tokens": 0},
        {"prompt": "x", "max_tokens": True},
        {"prompt": "x", "max_tokens": 10**9},
        {"prompt": "x", "api_key": "\u20ac"},
        ["x"],
    ],
)
def test_what_is_no_try_is_refused(asked: httpx.Client, body: Any) -> None:
    answer = asked.post("/try", json=body)
    assert answer.status_code == 400 and answer.json()["error"]


def test_an_api_that_is_not_there_is_said() -> None:
    server = AdminServer(Before("http://127.0.0.1:9"), "127.0.0.1", 0, KEY)
    try:
        headers = {"authorization": f"Bearer {KEY}"}
        answer = httpx.post(f"{server.url}/try", json={"prompt": "x"}, headers=headers, trust_env=False)
        assert answer.status_code == 502 and "cannot be reached from here" in answer.json()["error"]
    finally:
        server.close()
