"""Attacks on what lies below the fields: hot experts, floods, descriptors, rebinding, hostile files.

The numbers are those of docs/security.md. No clock: what is promised is promised in steps.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import Terms
from actors.scheduler import SchedulerLimits
from cluster.admin import AdminServer
from ingress.tokens import Tokenizer, TokenizerError
from model.sampling import Sampling
from tests.shoals import engine_of, generate, local_parts
from tests.shop import Shop
from tests.unit.test_admin import KEY, Still

ROOT = Path(__file__).parents[2]
GREEDY = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True, logprobs=0)
LIMITS = SchedulerLimits(max_sequences=8, chunk_tokens=64, max_step_tokens=80)
A, B = Terms(tenant="a"), Terms(tenant="b")
NOFILE = 48


def test_48_a_token_said_a_thousand_times_takes_nothing_from_a_neighbour(tiny_v32: Path) -> None:
    """All of it goes to the same experts; who decodes beside it has a token of every step all the same."""
    parts = local_parts(tiny_v32)
    victim = list(range(40, 60))
    [alone] = generate(engine_of(parts), [victim], GREEDY)
    engine = engine_of(parts)
    engine.submit("victim", "0", victim, [], GREEDY)
    said = [event for event in engine.step()["victim"] if event.token_ids]
    for number in range(3):
        engine.submit("flood", str(number), [31] * 330, [], replace(GREEDY, max_tokens=2))
    while said[-1].finish is None:
        said += engine.step()["victim"]  # KeyError: a step without a token for it
    assert [token for event in said for token in event.token_ids] == alone.token_ids
    assert [value for event in said for value in event.logprobs] == alone.logprobs


def steps_of(shop: Shop, prompt: int, answer: int) -> int:
    guest, steps = shop.add(prompt, answer, B), 0
    while guest in shop.live:
        shop.step()
        steps += 1
    return steps


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 64), st.integers(10, 40), st.integers(1, 60))
def test_71_a_flood_of_one_tenant_makes_another_wait_for_half_as_many_steps_again_at_most(
    prompt: int, answer: int, flood: int
) -> None:
    shop = Shop(400, LIMITS)
    for _ in range(flood):
        shop.add(300, 1, A)
    for _ in range(3):
        shop.step()
    assert steps_of(shop, prompt, answer) <= 1.5 * steps_of(Shop(400, LIMITS), prompt, answer)


CROWDED = f"""
import asyncio, resource, socket, uvicorn
from ingress.connection import BoundedProtocol

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}})
    await send({{"type": "http.response.body", "body": b"ok"}})

listener = socket.create_server(("127.0.0.1", 0), backlog=256)
server = uvicorn.Server(uvicorn.Config(app, http=BoundedProtocol, lifespan="off", log_level="error"))
resource.setrlimit(resource.RLIMIT_NOFILE, ({NOFILE}, {NOFILE}))
print(listener.getsockname()[1], flush=True)
asyncio.run(server.serve([listener]))
"""


def answered(port: int, patience_s: float) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return connection.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def test_69_without_descriptors_connections_wait_and_the_server_lives() -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", CROWDED],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        port = int(server.stdout.readline())
        assert answered(port, 20)
        flood = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(2 * NOFILE)]
        assert not answered(port, 0.3), "there is no descriptor left for it"
        for connection in flood:
            connection.close()
        until_s = time.monotonic() + 30
        while not answered(port, 5):
            assert server.poll() is None and time.monotonic() < until_s
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def admin():
    server = AdminServer(Still(), "127.0.0.1", 0, KEY)
    yield server
    server.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("[::1]:{port}", 200),
        ("10.1.2.3", 200),
    ],
)
def test_60_the_page_is_not_given_under_a_name_that_others_choose(
    admin: AdminServer, host: str, status: int
) -> None:
    with socket.create_connection((admin.host, admin.port), timeout=20) as connection:
        named = host.format(port=admin.port)
        connection.sendall(f"GET /ui HTTP/1.1\r\nhost: {named}\r\nconnection: close\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(?:a*)*", "([a-z]+){2,}", "((a|b)*c?)+", r"(\s+)*x", "(?:x(?:y+)z?)+", "(a{2,})+"]
)
def test_83_a_tokenizer_that_can_take_for_ever_is_refused(tmp_path: Path, tokenizer: Tokenizer, pattern: str):
    raw = json.loads((tokenizer.directory / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, raw["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(TokenizerError, match="repeats what already repeats"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "pattern",
    [
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|\s*[\r\n]+",
        r"\p{N}{1,3}",
        r"(?:ab{1,3}){2}|[(+)*]+",
        r"\(a+\)+",
    ],
)
def test_83_the_patterns_of_known_tokenizers_are_not(tmp_path: Path, tokenizer: Tokenizer, pattern: str):
    raw = json.loads((tokenizer.directory / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    raw["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, raw["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-contracts.txt"])
def test_84_every_package_is_pinned_to_one_version(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_]+", line)] == []
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    if file == "constraints.txt":
        wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = [*wanted["dependencies"], *wanted["optional-dependencies"]["dev"]]
    else:
        asked = (ROOT / "tests/contracts/requirements.txt").read_text().splitlines()
    names = {re.match(r"[A-Za-z0-9._-]+", one)[0].lower().replace("_", "-") for one in asked}
    assert names - pinned == set()
