"""Real text through every real part: HTTP, Serve, attention actor, sockets, expert actors and back."""

from __future__ import annotations

import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from cluster.embedded import embedded_directory
from model.sampling import Sampling
from tests.ray.conftest import Served, served
from tests.shoals import generate, local_engine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

TOKENS = 32
RECOVERY_TIMEOUT_S = 120.0


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(16, 272, (length,), generator=generator).tolist()


def body(prompt_ids: list[int], **extra: Any) -> dict[str, Any]:
    return {
        "model": "tiny-v32",
        "prompt": prompt_ids,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **extra,
    }


def complete(url: str, prompt_ids: list[int], **extra: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/completions", json=body(prompt_ids, **extra), timeout=RECOVERY_TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


def stream_tokens(
    url: str, prompt_ids: list[int], on_first: Any = None, *, key: str = "none", **extra: Any
) -> list[int]:
    """The token ids of a streamed completion; on_first is called after the first chunk with tokens."""
    tokens: list[int] = []
    finished = False
    request = body(prompt_ids, stream=True, **extra)
    told: dict[str, Any] = {"headers": {"authorization": f"Bearer {key}"}, "timeout": RECOVERY_TIMEOUT_S}
    with httpx.stream("POST", f"{url}/v1/completions", json=request, **told) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                finished = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                for choice in event["choices"]:
                    if choice.get("token_ids") and not tokens and on_first is not None:
                        on_first()
                    tokens += choice.get("token_ids") or []
    assert finished, "the stream ended without [DONE]"
    return tokens


def oracle(checkpoint: Path, prompt_ids: list[int]) -> list[int]:
    """What one local engine in this process makes of the prompt."""
    greedy = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    return generate(local_engine(checkpoint), [prompt_ids], greedy)[0].token_ids


def test_a_text_is_held_to_what_was_asked_for(cluster: Served) -> None:
    """By a helper of the ingress that is gone with it (tests that end clusters count what is left)."""
    told = {"structured_outputs": {"regex": "[0-9]{3}(-[a-z]{2})?"}, "ignore_eos": False}
    choice = complete(cluster.url, prompt(20), **told)
    assert re.fullmatch("[0-9]{3}(-[a-z]{2})?", choice["text"])
    assert choice["finish_reason"] == "stop"


def test_a_chat_is_answered_in_stream_and_whole_alike(cluster: Served) -> None:
    question = {
        "model": "tiny-v32",
        "messages": [{"role": "user", "content": "What are you?"}],
        "max_tokens": 24,
        "temperature": 0,
        "ignore_eos": True,
    }
    whole = httpx.post(f"{cluster.url}/v1/chat/completions", json=question, timeout=60).json()
    assert whole["usage"]["completion_tokens"] == 24
    text = ""
    request = {**question, "stream": True}
    with httpx.stream("POST", f"{cluster.url}/v1/chat/completions", json=request, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    for line in lines[:-1]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            text += choice["delta"].get("content") or ""
    assert text == whole["choices"][0]["message"]["content"]


def test_tokens_over_http_and_sockets_equal_a_local_engine(cluster: Served) -> None:
    for length in (5, 100):
        prompt_ids = prompt(length)
        assert stream_tokens(cluster.url, prompt_ids) == oracle(cluster.checkpoint, prompt_ids)


def test_sixteen_at_once_equal_each_alone(cluster: Served) -> None:
    prompts = [prompt(10 + 7 * i, seed=i) for i in range(16)]
    alone = [complete(cluster.url, p, logprobs=0) for p in prompts]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda p: complete(cluster.url, p, logprobs=0, cache_salt="again"), prompts))
    for one, other in zip(alone, together, strict=True):
        assert one["token_ids"] == other["token_ids"]
        assert one["logprobs"]["token_logprobs"] == other["logprobs"]["token_logprobs"]


def test_a_prompt_that_was_asked_before_is_told_as_cached_and_answered_alike(cluster: Served) -> None:
    asked = body(prompt(200, seed=50))
    first, second = (
        httpx.post(f"{cluster.url}/v1/completions", json=asked, timeout=60).json() for _ in range(2)
    )
    assert first["choices"][0]["token_ids"] == second["choices"][0]["token_ids"]
    assert first["usage"]["prompt_cache_hit_tokens"] == 0
    assert second["usage"]["prompt_cache_hit_tokens"] == 192


def test_bad_requests_are_refused_and_change_nothing(cluster: Served) -> None:
    before = complete(cluster.url, prompt(20))
    bad: list[tuple[str, Any]] = [
        ("/v1/completions", body([], model="tiny-v32")),
        ("/v1/completions", body(prompt(4), temperature=-1)),
        ("/v1/completions", body(prompt(4), top_p=0)),
        ("/v1/completions", body(prompt(4), max_tokens=10**6)),
        ("/v1/completions", body([999999])),
        ("/v1/completions", body(prompt(4), model="no-such-model")),
        ("/v1/chat/completions", {"model": "tiny-v32", "messages": []}),
        ("/v1/nothing", {}),
    ]
    for path, request in bad:
        answer = httpx.post(cluster.url + path, json=request, timeout=30)
        assert 400 <= answer.status_code < 500, (path, request, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    for content in (b"not json", b"[" * 100_000, b"x" * (2 << 20)):
        answer = httpx.post(
            f"{cluster.url}/v1/completions",
            content=content,
            headers={"content-type": "application/json"},
            timeout=30,
        )
        assert 400 <= answer.status_code < 500
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert httpx.get(f"{cluster.url}/health", timeout=10).status_code == 200
    assert complete(cluster.url, prompt(20)) == before


def test_sigkill_of_an_expert_actor_mid_stream_changes_no_token(cluster: Served) -> None:
    prompt_ids = prompt(40, seed=3)
    expected = oracle(cluster.checkpoint, prompt_ids)
    kill = lambda: psutil.Process(cluster.pid_of("expert-0")).send_signal(signal.SIGKILL)  # noqa: E731
    assert stream_tokens(cluster.url, prompt_ids, on_first=kill) == expected
    assert complete(cluster.url, prompt_ids)["token_ids"] == expected


def test_sigkill_of_the_attention_actor_mid_stream_changes_no_token(cluster: Served) -> None:
    prompt_ids = prompt(70, seed=4)
    expected = oracle(cluster.checkpoint, prompt_ids)
    kill = lambda: psutil.Process(cluster.pid_of("attention-0")).send_signal(signal.SIGKILL)  # noqa: E731
    assert stream_tokens(cluster.url, prompt_ids, on_first=kill) == expected
    assert complete(cluster.url, prompt_ids)["token_ids"] == expected


def test_actors_are_as_urgent_as_who_started_them(cluster: Served) -> None:
    names = ("expert-0", "expert-1", "attention-0")
    own = psutil.Process(cluster.process.pid).nice()
    assert {psutil.Process(cluster.pid_of(name)).nice() for name in names} == {own}


def test_without_a_model_the_embedded_one_answers_as_alone_and_control_c_ends_it_all() -> None:
    prompt_ids = prompt(150)  # past its index_topk
    with served(embedded_directory()) as running:
        assert running.ready["model"] == "shoal-demo"
        got = complete(running.url, prompt_ids, model="shoal-demo")
        question = {"model": "shoal-demo", "messages": [{"role": "user", "content": "What are you?"}]}
        chat = httpx.post(f"{running.url}/v1/chat/completions", json=question, timeout=60)
        ends_with_all_of_it(running, signal.SIGINT)
    assert got["token_ids"] == oracle(running.checkpoint, prompt_ids)
    assert chat.status_code == 200, chat.text
    assert chat.json()["usage"]["completion_tokens"] > 0


def test_experts_in_the_attention_actor_give_the_same_and_sigterm_leaves_no_process_behind(
    checkpoint: Path,
) -> None:
    prompt_ids = prompt(60, seed=5)
    with served(checkpoint, "--experts", "0") as running:
        assert complete(running.url, prompt_ids)["token_ids"] == oracle(checkpoint, prompt_ids)
        ends_with_all_of_it(running, signal.SIGTERM)


def ends_with_all_of_it(running: Served, number: signal.Signals) -> None:
    family = running.descendants()
    assert len(family) > 5
    running.process.send_signal(number)
    assert running.process.wait(60) == 0
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s and any(p.is_running() for p in family):
        time.sleep(0.1)
    assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
