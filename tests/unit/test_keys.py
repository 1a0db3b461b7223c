"""Keys and their limits: nobody in without one, nothing of it written down, and what a limit means."""

from __future__ import annotations

import itertools
import json
import logging
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route
from typer.testing import CliRunner

from actors.messages import Terms
from cluster.cli import app as command
from ingress.app import create_app
from ingress.engine_client import EngineClient
from ingress.errors import RateLimited
from ingress.keys import ApiKey, KeyRing, KeysError, add_key, digest_of, find, read_keys, revoke_key
from ingress.quota import Bucket, Meter, Quota
from tests.unit.app_server import CHAT, LIMITS, MODEL, PLAIN, TEXT, Served, check_error, says
from tests.unit.loopback_engine import TOKEN, http_server


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# The file


def test_a_key_is_shown_once_and_its_file_holds_nothing_of_it(tmp_path: Path):
    file = tmp_path / "keys.json"
    made = CliRunner().invoke(command, ["keys", "add", str(file), "ann", "--requests-per-minute", "60"])
    secret = made.stdout.strip()
    assert secret.startswith("sk-shoal-") and len(secret) > 50
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in file.read_text() and secret[9:] not in file.read_text()
    listed = json.loads(CliRunner().invoke(command, ["keys", "list", str(file), "--json"]).stdout)
    assert listed == [
        {"name": "ann", "requests_per_minute": 60, "tokens_per_minute": None, "max_sequences": None}
    ]
    assert find(read_keys(file), secret).name == "ann"
    assert CliRunner().invoke(command, ["keys", "revoke", str(file), "ann"]).exit_code == 0
    assert read_keys(file) == ()
    assert [left.name for left in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "{}", "ann"], "already"),
        (["add", "{}", "a b"], "name is 'a b'"),
        (["add", "{}", "bob", "--max-sequences", "0"], "max_sequences is 0"),
        (["add", "{}/no/keys.json", "bob"], "cannot be opened"),
        (["revoke", "{}", "bob"], "no key of 'bob'"),
        (["list", "{}.not"], "cannot be read"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_in_one_line(tmp_path: Path, arguments: list[str], words: str):
    file = tmp_path / "keys.json"
    add_key(file, "ann")
    done = CliRunner().invoke(command, ["keys", *(one.format(file) for one in arguments)])
    assert done.exit_code == 1
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


ENTRY = {"name": "ann", "sha256": "0" * 64}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b"\xff",
        b"[" * 100_000,
        json.dumps({"keys": [{**ENTRY, "sha256": "sk-shoal-in-plain"}]}).encode(),
        json.dumps({"keys": [{**ENTRY, "key": "sk-shoal-in-plain"}]}).encode(),
        json.dumps({"keys": [{**ENTRY, "max_sequences": 0}]}).encode(),
        json.dumps({"keys": [{**ENTRY, "max_sequences": "5"}]}).encode(),
        json.dumps({"keys": [ENTRY, ENTRY]}).encode(),
        json.dumps({"keys": [ENTRY, {**ENTRY, "name": "bob"}]}).encode(),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_tells_nothing_of_it(tmp_path: Path, content: bytes):
    file = tmp_path / "keys.json"
    file.write_bytes(content)
    with pytest.raises(KeysError) as refused:
        read_keys(file)
    assert str(file) in str(refused.value)
    assert "plain" not in str(refused.value).removeprefix(str(file))
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_that_everybody_can_write_is_refused(tmp_path: Path):
    file = tmp_path / "keys.json"
    add_key(file, "ann")
    file.chmod(0o666)
    with pytest.raises(KeysError, match="chmod o-w"):
        read_keys(file)


def test_a_change_is_seen_and_a_bad_one_keeps_the_keys_and_says_so(tmp_path: Path):
    file, clock = tmp_path / "keys.json", Clock()
    first = add_key(file, "ann")
    ring = KeyRing(file, clock)

    def later() -> str | None:
        clock.now_s += KeyRing.LOOK_S
        return ring.refresh()

    assert later() is None
    second = add_key(file, "bob")
    assert ring.refresh() is None, "looks at most once a second"
    assert "2 keys" in (later() or "")
    assert find(ring.keys, second).name == "bob"
    file.write_text("{")
    assert "2 keys that were known stay" in (later() or "")
    assert later() is None, "said once"
    assert find(ring.keys, first) and find(ring.keys, second)
    file.unlink()
    assert "cannot be read" in (later() or "")
    assert find(ring.keys, first)
    add_key(file, "cat")
    assert "1 keys" in (later() or "")
    assert find(ring.keys, first) is None


def test_every_entry_is_compared_whatever_is_given(monkeypatch: pytest.MonkeyPatch):
    """Time that does not depend on the key, as a count: no clock is that good on a busy machine."""
    keys = [ApiKey(name=f"k{i}", sha256=digest_of(str(i))) for i in range(20)]
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr("ingress.keys.hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    for given_key in ("0", "7", "19", "none", ""):
        compared.clear()
        assert (find(keys, given_key) is None) == (given_key in ("none", ""))
        assert len(compared) == 20
        assert {len(side) for pair in compared for side in pair} == {64}


# Limits


@given(
    st.integers(1, 600),
    st.lists(st.tuples(st.floats(0, 90), st.integers(1, 40)), max_size=60),
)
def test_no_minute_gives_more_than_twice_what_a_bucket_holds_and_a_wait_is_true(per_minute, asked):
    now_s, bucket, taken = 0.0, Bucket(per_minute, 0.0), []
    for pause_s, amount in asked:
        now_s += pause_s
        wait_s = bucket.wait_s(amount, now_s)
        if wait_s == 0:
            bucket.take(amount, now_s)
            taken.append((now_s, amount))
        else:
            assert bucket.wait_s(amount, now_s + wait_s + 1e-6) == 0
    for start_s, _ in taken:
        in_minute = sum(amount for at_s, amount in taken if start_s <= at_s < start_s + 60)
        assert in_minute <= 2 * per_minute + 40  # the bucket, its refill, and one that was too large for it


def meter(clock: Clock, **limits: int) -> Meter:
    return Meter("ann", Quota(**limits), clock)


def test_requests_beyond_the_minutes_are_told_when_to_come_back():
    clock = Clock()
    limited = meter(clock, requests=2)
    limited.count_request()
    limited.count_request()
    with pytest.raises(RateLimited) as refused:
        limited.count_request()
    assert refused.value.retry_after_s == 30
    clock.now_s += 30
    limited.count_request()
    assert limited.headers() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60.000s",
    }


def test_tokens_are_counted_when_they_are_made_and_a_debt_has_the_next_wait():
    clock = Clock()
    limited = meter(clock, tokens=60)
    limited.admit(10, 1).spend(80)
    assert limited.headers()["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(RateLimited) as refused:
        limited.admit(5, 1)
    assert refused.value.retry_after_s == 35
    clock.now_s += 35
    limited.admit(5, 1)


def test_what_is_larger_than_a_minutes_worth_passes_when_nothing_was_used():
    clock = Clock()
    limited = meter(clock, tokens=60)
    limited.admit(1000, 1)
    with pytest.raises(RateLimited):
        limited.admit(1, 1)


def test_sequences_at_once_are_bounded_and_one_request_is_never_impossible():
    limited = meter(Clock(), sequences=2)
    first, second = limited.admit(1, 1), limited.admit(1, 1)
    with pytest.raises(RateLimited, match="2 sequences under way, at most 2 at once"):
        limited.admit(1, 1)
    first.end()
    first.end()
    with pytest.raises(RateLimited, match="1 sequences under way, at most 2 at once"):
        limited.admit(1, 2)
    second.end()
    limited.admit(1, 5)


def test_replicas_share_the_limits_of_a_key():
    key = ApiKey(name="a", sha256="0" * 64, requests_per_minute=10, tokens_per_minute=9)
    assert Quota.of(key, 3) == Quota(requests=4, tokens=3, sequences=None)


# Over sockets


class Door:
    """The application with keys; each test makes its own."""

    def __init__(self, http: httpx.Client, app: FastAPI, file: Path, clock: Clock) -> None:
        self.http, self.app = http, app
        self._file, self._clock, self._numbers = file, clock, itertools.count()

    def key(self, **limits: int) -> tuple[str, str]:
        """A new name and its key, which is known from the next request on."""
        name = f"tenant-{next(self._numbers)}"
        secret = add_key(self._file, name, **limits)
        self.look()
        return name, secret

    def look(self) -> None:
        self._clock.now_s += KeyRing.LOOK_S

    def revoke(self, name: str) -> None:
        revoke_key(self._file, name)
        self.look()


@pytest.fixture
def door(served: Served, door_once: Door) -> Door:
    return door_once


@pytest.fixture(scope="module")
def door_once(served_once: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    file, clock = tmp_path_factory.mktemp("keys") / "keys.json", Clock()
    add_key(file, "first")
    places = [actor.endpoint for actor in served_once.actors]
    engine = EngineClient(places, token=TOKEN, identity="door-k")
    app = create_app(
        engine=engine,
        tokenizer=served_once.tokenizer,
        model_name=MODEL,
        context_tokens=4096,
        limits=LIMITS,
        keys=KeyRing(file, clock),
    )
    server = http_server(served_once.background, app)
    with server as url, httpx.Client(base_url=url, timeout=30, **PLAIN) as http:
        served_once.until(lambda: len(engine._candidates()) == 2)
        yield Door(http, app, file, clock)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_every_route_wants_a_key_but_health_and_ready(door: Door):
    routes = [route for route in door.app.routes if isinstance(route, Route)]
    assert len(routes) > 20
    for route in routes:
        path = route.path.replace("{name:path}", MODEL)
        for method in sorted({*(route.methods or ()), "GET", "POST", "OPTIONS", "HEAD"}):
            refused = door.http.request(method, path)
            if path in ("/health", "/ready"):
                assert refused.status_code == (200 if method == "GET" else 405)
            else:
                assert refused.status_code == 401, (method, path)
                assert MODEL not in refused.text
                assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models",
        "/v1/../v1/models",
        "/%76%31/models",
        "/V1/models",
        "/v1/models/",
        "/v1/models%00",
        "/health/../v1/models",
        "/health%2f..%2fv1/models",
        "/v1/models?/health",
        "/v1/models;/health",
        "/health?generate=1",
        "/v1/models?api_key={}",
        "/v1/models?authorization=Bearer%20{}",
    ],
)
def test_no_spelling_of_a_path_gets_around_the_key(door: Door, target: str):
    _, secret = door.key()
    for host in ("x", "a/health?", "a/health#", "x/ready"):
        request = door.http.build_request("GET", door.http.base_url, headers={"host": host})
        request.url = request.url.copy_with(raw_path=target.format(secret).encode())
        assert check_error(door.http.send(request), 401)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic {}"},
        {"authorization": "{}"},
        {"authorization": "Bearer {}x"},
        {"authorization": "Bearer x{}"},
        {"authorization": "Bearer wrong", "x-api-key": "{}"},
        {"x-api-key": ""},
        {"api-key": "{}"},
        {"cookie": "authorization=Bearer {}"},
    ],
    ids=str,
)
def test_a_wrong_key_is_a_401_in_each_dialect(door: Door, headers: dict[str, str]):
    _, secret = door.key()
    sent = {name: value.format(secret) for name, value in headers.items()}
    refused = door.http.post("/v1/chat/completions", json=CHAT, headers=sent)
    error = check_error(refused, 401)
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "x-request-id" in refused.headers
    assert secret not in refused.text and "wrong" not in refused.text
    anthropic = door.http.post("/v1/messages", json={}, headers=sent)
    assert anthropic.status_code == 401
    assert anthropic.json()["type"] == "error"
    assert anthropic.json()["error"]["type"] == "authentication_error"
    assert door.http.post("/v1/chat/completions", json=CHAT, headers=bearer(secret)).status_code == 200


def test_both_places_of_a_key_are_read_and_a_revoked_one_is_out(door: Door):
    name, secret = door.key()
    for headers in (bearer(secret), {"authorization": f"bearer {secret}"}, {"x-api-key": secret}):
        assert door.http.get("/v1/models", headers=headers).status_code == 200
    door.revoke(name)
    assert door.http.get("/v1/models", headers=bearer(secret)).status_code == 401


def test_the_name_of_a_key_is_the_tenant_that_salts_its_pages(served: Served, door: Door):
    """That pages of two tenants never meet is shown in tests/unit/test_usage.py, with a model."""
    ann, bob = door.key(), door.key()
    for _, secret in (ann, bob):
        body = {**TEXT, "cache_salt": "s", "user": "the same"}
        assert door.http.post("/v1/completions", json=body, headers=bearer(secret)).status_code == 200
    told = [Terms(**submit.terms).page_salt for actor in served.actors for submit in actor.submits]
    assert sorted(told) == sorted(f"{name}\ns" for name, _ in (ann, bob))


def test_limits_are_told_in_headers_and_refused_with_a_time(served: Served, door: Door):
    name, secret = door.key(requests_per_minute=3, tokens_per_minute=100)
    first = door.http.post("/v1/completions", json=TEXT, headers=bearer(secret))
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-requests"] == "3"
    assert first.headers["x-ratelimit-remaining-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-tokens"] == str(100 - 5 - 12)
    bad = door.http.post("/v1/completions", json={}, headers=bearer(secret))
    assert (bad.status_code, bad.headers["x-ratelimit-remaining-requests"]) == (400, "1")
    big = door.http.post("/v1/completions", json={**TEXT, "prompt": "a" * 90}, headers=bearer(secret))
    error = check_error(big, 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert name in error["message"]
    assert big.headers["retry-after"] == "5"
    over = door.http.get("/v1/models", headers=bearer(secret))
    assert check_error(over, 429)["code"] == "rate_limit_exceeded"
    assert over.headers["retry-after"] == "20"
    assert over.headers["x-ratelimit-remaining-requests"] == "0"
    assert door.http.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_sequences_that_end_make_place_whatever_ended_them(served: Served, door: Door, stream: bool):
    _, secret = door.key(max_sequences=1)

    def ask(**fields: Any) -> httpx.Response:
        body = {**TEXT, "stream": stream, **fields}
        return door.http.post("/v1/completions", json=body, headers=bearer(secret))

    for fields, status in (({}, 200), ({"max_tokens": 0}, 400), ({"stop": "x"}, 200), ({"n": 3}, 200)):
        assert ask(**fields).status_code == status
    says(served, "x", fail=True)
    assert ask().status_code == 500
    served.calm()
    says(served, "x" * 4000, pause_s=0.002)
    long = {**TEXT, "max_tokens": 4000, "stream": True}
    with door.http.stream("POST", "/v1/completions", json=long, headers=bearer(secret)) as response:
        lines = response.iter_lines()  # kept: with it the response would close
        assert next(lines).startswith("data:")
        refused = check_error(ask(), 429)
        assert refused["message"].startswith("the key of tenant-")
        assert "1 sequences under way, at most 1 at once" in refused["message"]
    served.calm()
    patience_s = time.monotonic() + 30
    while ask().status_code == 429 and time.monotonic() < patience_s:
        time.sleep(0.005)
    assert ask().status_code == 200


def test_neither_prompts_nor_keys_are_logged(
    served: Served, door: Door, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    _, secret = door.key()
    caplog.set_level(logging.DEBUG)
    marker = "a-sentence-of-the-client"
    said = {**TEXT, "prompt": marker}

    def ask(body: Any, key: str = secret) -> int:
        return door.http.post("/v1/completions", json=body, headers=bearer(key)).status_code

    for body in (said, {**said, "n": marker}, {"model": marker}, marker):
        for key in (secret, "wrong-" + secret):
            ask(body, key)
    door.http.get(f"/v1/models/{marker}?key={secret}", headers=bearer(secret))
    says(served, "x", fail=True)
    assert ask(said) == 500
    monkeypatch.setattr("ingress.app.Generation", lambda *_: 1 / 0)
    assert ask(said) == 500
    ours = [one for one in caplog.records if not one.name.startswith(("http", "asyncio"))]  # not the client's
    told = "\n".join(logging.Formatter().format(one) for one in ours)
    assert "ended with error" in told and "ZeroDivisionError" in told, "what is logged was read"
    assert marker not in told and secret not in told and secret[9:] not in told


SERVE_FAULTS: list[tuple[list[str], str]] = [
    (["--host", "0.0.0.0"], "--api-keys FILE, or say --serve-without-keys"),
    (["--host", "::"], "--serve-without-keys"),
    (["--host", "example.org"], "--serve-without-keys"),
    (["--api-keys", "{}/nowhere"], "cannot be read"),
    (["--api-keys", "{}/empty"], "holds no key"),
]


@pytest.mark.parametrize(("flags", "words"), SERVE_FAULTS, ids=lambda value: str(value)[:40])
def test_serve_refuses_to_be_open_to_everybody(tmp_path: Path, flags: list[str], words: str):
    add_key(tmp_path / "empty", "ann")
    revoke_key(tmp_path / "empty", "ann")
    done = CliRunner().invoke(
        command, ["serve", "--port", "18123", *(flag.format(tmp_path) for flag in flags)]
    )
    assert done.exit_code == 1
    assert words in " ".join(done.stderr.split())
