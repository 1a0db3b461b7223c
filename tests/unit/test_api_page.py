"""Every curl example of docs/api.md does what the page shows."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import httpx
import pytest

from tests.unit.api_page import MODEL, URL, Example, examples
from tests.unit.app_server import MODEL as SERVED_MODEL
from tests.unit.app_server import Served, says, spelled

CHANGING = {"created", "created_at"}  # keys whose value is never the same


def sent(served: Served, command: str) -> httpx.Response:
    """What curl would have sent."""
    words = shlex.split(command)
    assert words[0] == "curl"
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    content = next((words[at + 1] for at, word in enumerate(words) if word == "-d"), None)
    (url,) = [word for word in words if word.startswith(URL)]
    method = "GET" if content is None else "POST"
    body = None if content is None else content.replace(MODEL, SERVED_MODEL)
    return served.http.request(method, url.removeprefix(URL), content=body, headers=headers)


def is_shown(shown: Any, came: Any, key: str = "") -> bool:
    """Whether `came` is what the page shows; "..." stands for any end of a text."""
    if isinstance(shown, dict):
        return shown.keys() == came.keys() and all(is_shown(shown[name], came[name], name) for name in shown)
    if isinstance(shown, list):
        return len(shown) == len(came) and all(map(is_shown, shown, came))
    if isinstance(shown, str) and shown.endswith("..."):
        return isinstance(came, str) and came.startswith(shown.removesuffix("..."))
    return type(shown) is type(came) and (key in CHANGING or shown == came)


def values(text: str) -> list[Any]:
    """One JSON value, or those of a stream; what is no JSON stays text."""
    text = text.replace(MODEL, SERVED_MODEL)
    if not text.startswith("data: "):
        return [json.loads(text)]
    frames = re.findall(r"data: (.*)\n\n", text)
    return [json.loads(frame) if frame.startswith("{") else frame for frame in frames]


@pytest.mark.parametrize("example", examples("sh"), ids=lambda one: one.asked.split()[2].removeprefix(URL))
def test_an_example_shows_what_comes(served: Served, example: Example):
    says(served, spelled(served.tokenizer, example.says), tokens_per_event=64)
    came = sent(served, example.asked)
    shown = values(example.shown)
    assert is_shown(shown, values(came.text)), came.text
    assert came.status_code == (400 if shown[0].get("error") else 200)
