"""More than it can do: bounded, told when to come back, and nobody who was let in is let down."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors.admission import Refusal
from actors.attention import AttentionServer, ViewInbox
from actors.engine import Engine as AttentionEngine
from actors.engine import OwnedEvents
from actors.messages import Terms
from actors.scheduler import SchedulerLimits
from ingress.app import create_app
from ingress.engine_client import EngineClient
from ingress.limits import Limits
from ingress.link import Endpoint
from ingress.tokenizer_file import write_byte_tokenizer
from ingress.tokens import Tokenizer
from tests.shoals import CONTEXT, TOKEN, local_engine
from tests.shop import Shop
from tests.unit.loopback_engine import Background, http_server
from tests.unit.test_attention import until

MODEL = "org/tiny"
SHORT = {"model": MODEL, "prompt": "hi", "max_tokens": 2, "ignore_eos": True}
ENDLESS = {**SHORT, "max_tokens": 900}
FLEX = {"service_tier": "flex"}
MAX_QUEUE = 4
STEP_S = 0.004  # at least: the tiny model is quick


@dataclass
class Busy:
    """An application whose only attention actor has one place, taken by an answer that takes seconds."""

    http: httpx.Client
    engine: AttentionEngine
    pool: ThreadPoolExecutor
    endless: httpx.Response

    def release(self) -> None:
        """End the endless answer."""
        self.endless.close()

    def later(self, body: dict[str, Any], key: str | None = None) -> Any:
        """Send, and wait until it waits."""
        before = self.engine.num_waiting
        answer = self.pool.submit(self.post, body, key)
        until(lambda: self.engine.num_waiting > before or answer.done(), "it to wait")
        return answer

    def post(self, body: dict[str, Any], key: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return self.http.post("/v1/completions", json=body, headers=headers)


@contextmanager
def serving(tiny: Path, tokenizer: Tokenizer, max_queue_s: float) -> Iterator[Busy]:
    limits = SchedulerLimits(max_sequences=1, chunk_tokens=64, max_step_tokens=64, max_queue=MAX_QUEUE)
    engine = local_engine(tiny, limits=limits)
    step = engine.step

    def slowly(now_s: float) -> OwnedEvents:
        time.sleep(STEP_S)
        return step(now_s)

    engine.step = slowly
    server = AttentionServer(
        engine,
        views=ViewInbox(),
        stopping=threading.Event(),
        actor_id="attention-0",
        incarnation=1,
        token=TOKEN,
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    background = Background()
    place = Endpoint(actor_id="attention-0", host=server.host, port=server.port)
    ingress = EngineClient([place], token=TOKEN, identity="door-0")
    app = create_app(
        engine=ingress,
        tokenizer=tokenizer,
        model_name=MODEL,
        context_tokens=CONTEXT,
        limits=Limits(max_queue_s=max_queue_s),
    )
    with (
        http_server(background, app) as url,
        httpx.Client(base_url=url, timeout=30) as http,
        ThreadPoolExecutor(16) as pool,
        http.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as endless,
    ):
        parts = endless.iter_raw()  # whoever drops it drops the connection
        next(parts)
        yield Busy(http, engine, pool, endless)
    server.stop()
    thread.join(20)
    background.close()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(directory)
    return Tokenizer.from_file(directory / "tokenizer.json")


def check_refusal(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    seconds = int(response.headers["retry-after"])
    assert seconds >= 1
    assert error["message"].endswith(f"try again in {seconds} s")
    return error


def test_a_full_queue_refuses_by_share_and_lets_in_whoever_has_nothing_waiting(
    tiny_v32: Path, tokenizer: Tokenizer
) -> None:
    with serving(tiny_v32, tokenizer, 60.0) as busy:
        waiting = [busy.later(SHORT) for _ in range(MAX_QUEUE // 2)]
        check_refusal(busy.post(SHORT), 503, "overloaded")  # everybody who waits: not one of many
        waiting.append(busy.later(SHORT, key="sk-other"))
        assert "yours" in check_refusal(busy.post(SHORT), 429, "overloaded")["message"]
        check_refusal(busy.post(SHORT, key="sk-other"), 503, "overloaded")
        waiting.append(busy.later(SHORT, key="sk-third"))
        check_refusal(busy.post(SHORT, key="sk-fourth"), 503, "overloaded")
        assert busy.engine.num_waiting == MAX_QUEUE
        busy.release()
        assert [answer.result().status_code for answer in waiting] == [200] * MAX_QUEUE
        assert busy.engine.stats()["refused"] == 4


def test_a_request_is_let_in_with_all_its_choices_or_not_at_all(tiny_v32: Path, tokenizer: Tokenizer) -> None:
    with serving(tiny_v32, tokenizer, 60.0) as busy:
        many = busy.pool.submit(busy.post, {**SHORT, "n": 8})
        until(lambda: busy.engine.num_waiting == 8, "all of them")
        check_refusal(busy.post({**SHORT, "n": 8}), 503, "overloaded")
        until(lambda: busy.engine.num_waiting == 8, "the others of the refused one to be gone")
        busy.release()
        assert len(many.result().json()["choices"]) == 8


def test_interactive_requests_wait_so_long_and_batch_longer(tiny_v32: Path, tokenizer: Tokenizer) -> None:
    with serving(tiny_v32, tokenizer, 0.1) as busy:
        batch = busy.later({**SHORT, **FLEX})
        assert "waited" in check_refusal(busy.post(SHORT), 503, "overloaded")["message"]
        busy.release()
        assert batch.result().status_code == 200


def test_a_deadline_ends_who_waits_with_an_error_and_who_speaks_with_what_it_has_said(
    tiny_v32: Path, tokenizer: Tokenizer
) -> None:
    with serving(tiny_v32, tokenizer, 60.0) as busy:
        waited = busy.post({**SHORT, **FLEX, "deadline_s": 0.1})
        assert "deadline" in check_refusal(waited, 504, "deadline_exceeded")["message"]
        busy.release()
        cut = busy.post({**ENDLESS, "deadline_s": 0.3, "return_token_ids": True}).json()
    [choice] = cut["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "deadline")
    assert 0 < len(choice["token_ids"]) == cut["usage"]["completion_tokens"] < 900


class Traffic:
    """Requests of three tenants and mixed lengths, a fifth of them batch, before a simulated actor."""

    def __init__(self) -> None:
        self.limits = SchedulerLimits(max_sequences=8, chunk_tokens=64, max_step_tokens=80, max_queue=64)
        self.shop = Shop(60, self.limits, step_s=0.02, token_s=0.001)
        self.refused: list[Refusal] = []
        self.num_admitted = 0
        self.longest_queue = 0
        self._generator = random.Random(1)

    def arrive(self) -> None:
        is_batch = self._generator.random() < 0.2
        tenant = self._generator.choice("aabc")
        terms = Terms(tenant=tenant, is_batch=is_batch, max_wait_s=None if is_batch else 20.0)
        refusal = self.shop.scheduler.refusal(terms)
        if refusal is None:
            self.shop.add(self._generator.randint(1, 500), self._generator.randint(1, 120), terms)
            self.num_admitted += 1
        else:
            self.refused.append(refusal)

    def gap_s(self, mean_s: float) -> float:
        return self._generator.expovariate(1 / mean_s)

    def step(self) -> None:
        for late, refusal in self.shop.scheduler.overdue(self.shop.now_s):
            self.shop.cancel(late)
            self.refused.append(refusal)
            self.num_admitted -= 1
        self.longest_queue = max(self.longest_queue, len(self.shop.scheduler.waiting))
        self.shop.step()


def mean_service_s() -> float:
    """Time per request of one that is never idle."""
    traffic = Traffic()
    while traffic.shop.now_s < 30.0:
        while len(traffic.shop.scheduler.waiting) < 10:
            traffic.arrive()
        traffic.step()
    return traffic.shop.now_s / len(traffic.shop.finished)


def test_at_twice_the_capacity_the_queue_is_bounded_and_everybody_is_answered() -> None:
    traffic, mean_s, next_s = Traffic(), mean_service_s() / 2, 0.0
    while traffic.shop.now_s < 150.0:
        while next_s <= traffic.shop.now_s:
            next_s += traffic.gap_s(mean_s)
            traffic.arrive()
        traffic.step()
    traffic.shop.run()
    assert len(traffic.shop.finished) == traffic.num_admitted
    assert traffic.longest_queue <= traffic.limits.max_queue
    refused = len(traffic.refused) / (len(traffic.refused) + traffic.num_admitted)
    assert 0.3 < refused < 0.6
    assert all(0 < refusal.retry_after_s < 150 for refusal in traffic.refused)
