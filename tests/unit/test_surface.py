"""The routes and fields around the answers: every client finds what it looks for."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ingress.desk import OrderDesk
from ingress.errors import InvalidRequest
from ingress.tokenizer_file import write_byte_tokenizer
from ingress.tokens import Tokenizer
from tests.unit.app_server import CHAT, MODEL, TEXT, Served, check_error, says, spelled, streamed, validate

CHATS, TEXTS = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize("prefix", ["", "/beta"])
def test_deepseeks_places_answer_like_openais(served: Served, prefix: str):
    for path, body in (("/chat/completions", CHAT), ("/completions", TEXT)):
        wanted = served.answer(f"/v1{path}", body)["choices"]
        assert served.answer(f"{prefix}{path}", body)["choices"] == wanted
        assert served.http.get(f"{prefix}{path}").status_code == 405
    for path in ("/models", f"/models/{MODEL}"):
        assert served.http.get(f"{prefix}{path}").json() == served.http.get(f"/v1{path}").json()


def test_a_prefix_is_continued_in_both_dialects(served: Served):
    question, begun = CHAT["messages"][0], {"role": "assistant", "content": "Once upon"}
    deepseek = {**CHAT, "messages": [question, {**begun, "prefix": True}], "return_token_ids": True}
    vllm = {**deepseek, "messages": [question, begun], "continue_final_message": True}
    answers = [served.answer("/beta/chat/completions", body) for body in (deepseek, vllm)]
    assert answers[0]["prompt_token_ids"] == answers[1]["prompt_token_ids"]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["prompt_token_ids"][-4:] == served.tokenizer.encode_text("upon")
    check_error(served.post(CHATS, {**CHAT, "messages": [question, begun]}), 400)


@pytest.mark.parametrize("prompt", ["h\u00e9llo", [120, 120, 3]], ids=["text", "ids"])
def test_an_echo_repeats_each_prompt_and_costs_no_tokens(served: Served, prompt: Any):
    plain = served.answer(TEXTS, {**TEXT, "prompt": [prompt, prompt], "n": 2, "seed": 3})
    body = {**TEXT, "prompt": [prompt, prompt], "n": 2, "seed": 3, "echo": True}
    echoed = served.answer(TEXTS, body)
    text = prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt, keep_special=True)
    assert [one["text"] for one in echoed["choices"]] == [text + one["text"] for one in plain["choices"]]
    assert echoed["usage"] == plain["usage"]
    chunks = served.chunks(TEXTS, body)
    assert [streamed(chunks)[index][1] for index in range(4)] == [one["text"] for one in echoed["choices"]]


def test_echoes_and_usage_in_every_chunk_are_openais(served: Served):
    options = {"include_usage": True, "continuous_usage_stats": True}
    for chunk in served.chunks(TEXTS, {**TEXT, "echo": True, "stream_options": options}):
        validate(chunk, "CreateCompletionResponse")
    for chunk in served.chunks(CHATS, {**CHAT, "stream_options": options}):
        validate(chunk, "CreateChatCompletionStreamResponse")


def merged_logprobs(chunks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    merged: dict[str, list[Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        for name, values in (choice["logprobs"] or {}).items():
            merged.setdefault(name, []).extend(values)
    return merged


PROMPTS = {"text": "h\u00e9llo\U0001f600", "ids": [3, 120, 120], "one token": [120]}


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_an_echo_with_logprobs_tells_those_of_the_prompt(served: Served, prompt: Any, max_tokens: int):
    plain = served.answer(TEXTS, {**TEXT, "prompt": prompt, "logprobs": 2, "max_tokens": max(1, max_tokens)})
    body = {**TEXT, "prompt": prompt, "max_tokens": max_tokens, "logprobs": 2, "echo": True}
    answer = served.answer(TEXTS, {**body, "return_token_ids": True})
    [choice], prompt_ids = answer["choices"], answer["choices"][0]["prompt_token_ids"]
    own, told, count = plain["choices"][0]["logprobs"], choice["logprobs"], len(prompt_ids)
    assert all(len(values) == count + max_tokens for values in told.values())
    assert told["token_logprobs"][:count] == [None] + [-0.25] * (count - 1)
    assert told["top_logprobs"][0] is None
    assert all(tops[told["tokens"][1 + i]] >= -0.25 for i, tops in enumerate(told["top_logprobs"][1:count]))
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert told[name][count:] == own[name][:max_tokens]
    text = prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt, keep_special=True)
    assert choice["text"] == text + (plain["choices"][0]["text"] if max_tokens else "")
    pieces = [choice["text"][start:] for start in told["text_offset"]]
    assert all(
        piece.startswith(token)
        for piece, token in zip(pieces, told["tokens"], strict=True)
        if token.isascii()
    )
    assert choice["finish_reason"] == "length"
    nothing = {"token_logprobs": [0.0, *told["token_logprobs"][1:]], "top_logprobs": told["top_logprobs"][1:]}
    shown = {**choice, "logprobs": {**told, **nothing}}  # OpenAI's null is not in OpenAI's schema
    validate({**answer, "choices": [shown]}, "CreateCompletionResponse")
    assert answer["usage"]["completion_tokens"] == max_tokens
    assert answer["usage"]["prompt_tokens"] == count
    chunks = served.chunks(TEXTS, body)
    assert streamed(chunks)[0][1] == choice["text"]
    assert merged_logprobs(chunks) == told


def test_many_prompts_echoed_without_an_answer_keep_their_places(served: Served):
    prompts = ["ab", "cde", "f"]
    body = {**TEXT, "prompt": prompts, "max_tokens": 0, "echo": True}
    for more in ({}, {"logprobs": 0}):
        choices = served.answer(TEXTS, {**body, **more})["choices"]
        assert [choice["text"] for choice in choices] == prompts
        assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [2, 3, 1]
    assert [streamed(served.chunks(TEXTS, body))[index][1] for index in range(3)] == prompts


@pytest.mark.parametrize("drop_after", [1, 3])
def test_a_lost_actor_neither_loses_nor_repeats_the_logprobs_of_a_prompt(served: Served, drop_after: int):
    body = {**TEXT, "logprobs": 1, "echo": True, "max_tokens": 6}
    wanted = served.answer(TEXTS, body)["choices"]
    for actor in served.actors:
        actor.drop_after = drop_after
    assert served.answer(TEXTS, body)["choices"] == wanted


def test_a_suffix_makes_the_prompt_that_fills_the_middle(served: Served):
    body = {**TEXT, "prompt": "def f(", "suffix": "):\n", "return_token_ids": True}
    answer = served.answer("/beta/completions", body)
    specials = [served.tokenizer.special_id(f"<｜fim▁{name}｜>") for name in ("begin", "hole", "end")]
    before, after = (served.tokenizer.encode_text(text) for text in ("def f(", "):\n"))
    wanted = [specials[0], *before, specials[1], *after, specials[2]]
    assert answer["choices"][0]["prompt_token_ids"] == wanted
    check_error(served.post(TEXTS, {**TEXT, "prompt": [[20]], "suffix": "x"}), 400)
    assert served.answer(TEXTS, {**TEXT, "suffix": ""})["choices"] == served.answer(TEXTS, TEXT)["choices"]


def test_what_a_vocabulary_lacks_is_refused_by_the_field_that_needs_it(tmp_path: Path):
    write_byte_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    for name in ("fim▁hole", "DSML"):
        file.write_text(file.read_text(encoding="utf-8").replace(name, name[::-1]), encoding="utf-8")
    desk = OrderDesk(tokenizer=Tokenizer.from_file(file), model_name=MODEL, context_tokens=8192)
    with pytest.raises(InvalidRequest) as refused:
        desk.completion(json.dumps({**TEXT, "suffix": "x"}).encode())
    assert refused.value.param == "suffix"
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(InvalidRequest) as refused:
        desk.chat(json.dumps({**CHAT, "tools": [tool]}).encode())
    assert refused.value.param == "messages"


@pytest.mark.parametrize(("path", "body"), [(CHATS, CHAT), (TEXTS, TEXT)])
def test_usage_may_come_with_every_chunk(served: Served, path: str, body: dict[str, Any]):
    says(served, "one two three", tokens_per_event=2)
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = served.chunks(path, {**body, "stream_options": options})
    made = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert made == sorted(made)
    assert set(made) >= {2, 4, 6, 8, 10, 12}
    assert made[-1] == served.answer(path, body)["usage"]["completion_tokens"]
    assert all(chunk["usage"]["prompt_tokens"] == chunks[-1]["usage"]["prompt_tokens"] for chunk in chunks)
    alone = served.chunks(path, {**body, "stream_options": {"continuous_usage_stats": True}})
    assert not any(chunk.get("usage") for chunk in alone)


def test_the_tokenizer_is_described(served: Served):
    info = served.http.get("/tokenizer_info").json()
    for name in ("bos", "eos"):
        spelling, token_id = info[f"{name}_token"], info[f"{name}_token_id"]
        assert served.answer("/detokenize", {"tokens": [token_id]}) == {"prompt": spelling}
        assert spelled(served.tokenizer, spelling) == [token_id]
    assert info["model_max_length"] == 4096
    assert info["vocab_size"] == served.tokenizer.vocab_size
    check_error(served.post("/detokenize", {"tokens": [info["vocab_size"]]}), 400)


@pytest.mark.parametrize(
    "switch",
    [
        {"chat_template_kwargs": {"thinking": True}},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"thinking": {"type": "enabled"}},
        {"reasoning_effort": "high"},
    ],
    ids=str,
)
def test_a_chat_is_tokenized_as_it_would_be_answered(served: Served, switch: dict[str, Any]):
    told = served.answer("/tokenize", {"messages": CHAT["messages"], **switch})["tokens"]
    body = {**CHAT, **switch, "return_token_ids": True}
    assert served.answer(CHATS, body)["prompt_token_ids"] == told
    assert served.answer("/tokenize", {"messages": CHAT["messages"]})["tokens"] != told


def test_load_counts_what_is_under_way(served: Served):
    served.until(lambda: served.engine.open_sequences == 0)  # the tests before have ended
    says(served, "x" * 4000, pause_s=0.002)
    body = {**TEXT, "max_tokens": 4000, "n": 3, "stream": True}
    with served.http.stream("POST", TEXTS, json=body) as response:
        lines = response.iter_lines()
        next(lines)
        load = served.http.get("/load").json()
    assert (load["server_load"], load["max_server_load"]) == (3, 64)
    assert load["wait_s"] >= 0.0
    served.until(lambda: served.engine.open_sequences == 0)


def test_health_may_ask_for_a_token(served: Served, monkeypatch: pytest.MonkeyPatch):
    assert served.http.get("/health").status_code == 200
    assert not any(actor.submits for actor in served.actors)
    assert served.http.get("/health?generate=1").status_code == 200
    assert sum(len(actor.submits) for actor in served.actors) == 1
    says(served, "x", fail=True)
    check_error(served.http.get("/health?generate=1"), 500)
    assert served.http.get("/health").status_code == 200
    says(served, "x", fail=False, mute=True)
    monkeypatch.setattr("ingress.probe.PATIENCE_S", 0.05)
    check_error(served.http.get("/health?generate=true"), 504)
    check_error(served.http.get("/health?generate=perhaps"), 400)
