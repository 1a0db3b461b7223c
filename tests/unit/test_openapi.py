"""The OpenAPI document: it names every route, and what comes back is what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.unit.app_server import CHAT, MODEL, TEXT, Served, says

UNDESCRIBED = {"/openapi.json"}
SAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {**CHAT, "thinking": {"type": "enabled"}}),
    ("/v1/completions", {**TEXT, "echo": True, "logprobs": 1, "max_tokens": 0}),
    ("/v1/completions", {**TEXT, "prompt": [[20, 21], [22]], "logprobs": 0}),
    ("/v1/responses", {"model": MODEL, "input": "hello", "max_output_tokens": 5}),
    ("/v1/messages", {**CHAT}),
    ("/v1/messages/count_tokens", {"model": MODEL, "messages": CHAT["messages"]}),
    ("/tokenize", {"prompt": "hello"}),
    ("/detokenize", {"tokens": [20, 21]}),
]


@pytest.fixture(scope="module")
def described(served_once: Served) -> dict[str, Any]:
    return served_once.http.get("/openapi.json").json()


def schema_of(described: dict[str, Any], name: str) -> Draft202012Validator:
    return Draft202012Validator({**described, "$ref": f"#/components/schemas/{name}"})


def validator(described: dict[str, Any], path: str, method: str, status: int) -> Draft202012Validator:
    answer = described["paths"][path][method]["responses"][str(status)]["content"]["application/json"]
    return Draft202012Validator({**described, **answer["schema"]})


def test_every_route_is_described_and_nothing_else(served: Served, described: dict[str, Any]):
    app_routes = {
        (re.sub(r"{(\w+):path}", r"{\1}", route.path), method.lower())
        for route in served.app.routes
        for method in route.methods - {"HEAD"}
        if route.path not in UNDESCRIBED
    }
    assert app_routes == {(path, method) for path, item in described["paths"].items() for method in item}


@pytest.mark.parametrize(("path", "body"), SAMPLES, ids=[f"{p}-{i}" for i, (p, _) in enumerate(SAMPLES)])
def test_what_is_asked_and_answered_is_as_described(
    served: Served, described: dict[str, Any], path: str, body: dict[str, Any]
):
    says(served, "let me see")
    request = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    Draft202012Validator({**described, **request}).validate(body)
    validator(described, path, "post", 200).validate(served.answer(path, body))
    refused = served.post(path, {"model": MODEL, "tokens": "x"})
    assert refused.status_code == 400
    validator(described, path, "post", 400).validate(refused.json())


@pytest.mark.parametrize(
    "path", ["/v1/models", "/models", "/tokenizer_info", "/ready", "/load", "/version", "/v1/models/{name}"]
)
def test_what_is_told_is_as_described(served: Served, described: dict[str, Any], path: str):
    answer = served.http.get(path.replace("{name}", MODEL))
    assert answer.status_code == 200
    validator(described, path, "get", 200).validate(answer.json())


def test_its_examples_are_answered(served: Served, described: dict[str, Any]):
    says(served, "42")
    for path, item in described["paths"].items():
        for body in (item["post"]["requestBody"]["content"]["application/json"],) if "post" in item else ():
            assert served.post(path, body["example"]).status_code == 200, path


@pytest.mark.parametrize("fields", [{"n": 0}, {"stop": [""]}, {"logit_bias": {"x": 1}}, {"model": "other"}])
def test_what_is_refused_is_not_described(served: Served, described: dict[str, Any], fields: dict[str, Any]):
    body = {**CHAT, **fields}
    assert served.post("/v1/chat/completions", body).status_code in (400, 404)
    assert not schema_of(described, "ChatRequest").is_valid(body)
