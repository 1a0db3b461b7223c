"""A served cluster from outside: closed without a key, bounded at the proxy, listening on loopback only."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
import pytest

from ingress.keys import add_key, revoke_key
from ingress.limits import ConnectionLimits
from tests.ray.conftest import Served, served

pytestmark = pytest.mark.ray
PER_ADDRESS = 20
BODY = {"model": "tiny-v32", "prompt": [20, 21, 22], "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return file, add_key(file, "first")


@pytest.fixture(scope="module")
def guarded(checkpoint: Path, keys: tuple[Path, str]) -> Iterator[Served]:
    config = keys[0].with_name("shoal.yaml")
    config.write_text(f"max_body_bytes: 5000\nmax_connections_per_address: {PER_ADDRESS}\n")
    flags = ("--experts", "2", "--standbys", "0", "--api-keys", str(keys[0]), "--config", str(config))
    with served(checkpoint, *flags) as running:
        yield running


def ask(cluster: Served, path: str, key: str | None, body: Any = None) -> tuple[int, str]:
    request = urllib.request.Request(cluster.url + path, None if body is None else json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    if key is not None:
        request.add_header("authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def raw(cluster: Served, sent: bytes) -> bytes:
    place = urlsplit(cluster.url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(sent)
        return connection.recv(65536)


def test_without_a_key_there_is_nothing_but_health(guarded: Served, keys: tuple[Path, str]) -> None:
    file, first = keys
    deadline_s = time.monotonic() + 20
    assert ask(guarded, "/health", None)[0] == 200
    while ask(guarded, "/ready", None)[0] == 503:
        assert time.monotonic() < deadline_s, "ready as the command has said"
        time.sleep(0.2)
    for path in ("/v1/models", "/load", "/openapi.json", "/health?generate=1", "/nowhere"):
        assert ask(guarded, path, None)[0] == 401
    for path in ("/-/routes", "/-/healthz"):
        status, text = ask(guarded, path, None)
        assert status == 404 and "shoal" not in text
    status, text = ask(guarded, "/v1/completions", first, BODY)
    assert status == 200
    second = add_key(file, "second")
    while ask(guarded, "/v1/models", second)[0] == 401:
        assert time.monotonic() < deadline_s, "a new key is seen"
        time.sleep(0.2)
    revoke_key(file, "second")
    while ask(guarded, "/v1/models", second)[0] == 200:
        assert time.monotonic() < deadline_s, "a revoked key is out"
        time.sleep(0.2)
    again = ask(guarded, "/v1/completions", first, BODY)
    assert (again[0], json.loads(again[1])["choices"]) == (200, json.loads(text)["choices"])


def test_the_proxy_bounds_what_no_application_sees(guarded: Served) -> None:
    assert raw(guarded, b"GET /health HTTP/1.1\r\nhost: x\r\na: " + b"x" * 65536).startswith(b"HTTP/1.1 431")
    spoiled = b"GET /health HTTP/1.1\r\nhost: x\r\nx-request-timeout-seconds: \xff\r\n\r\n"
    assert raw(guarded, spoiled).startswith(b"HTTP/1.1 200")
    assert raw(guarded, b"not HTTP at all\r\n\r\n").startswith(b"HTTP/1.1 400")
    began_s = time.monotonic()
    assert raw(guarded, b"GET /health HTTP/1.1\r\n").startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began_s >= ConnectionLimits().head_read_s - 1


def test_the_limits_of_the_description_hold(guarded: Served, keys: tuple[Path, str]) -> None:
    assert ask(guarded, "/v1/completions", keys[1], {**BODY, "user": "u" * 5000})[0] == 413
    place = urlsplit(guarded.url)
    with ExitStack() as stack:
        for _ in range(PER_ADDRESS):
            stack.enter_context(socket.create_connection((place.hostname, place.port)))
        with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 429")
    until_s = time.monotonic() + 20
    while raw(guarded, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 429"):
        assert time.monotonic() < until_s, "who is gone makes place"


def test_nobody_leaves_unnoticed(guarded: Served, keys: tuple[Path, str]) -> None:
    """Serve's own header against that does not reach it."""
    content = json.dumps({**BODY, "max_tokens": 3000, "ignore_eos": True, "stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {keys[1]}\r\nx-request-disconnect-disabled: ?1\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode()
    place = urlsplit(guarded.url)

    def under_way() -> int:
        return int(json.loads(ask(guarded, "/load", keys[1])[1])["server_load"])

    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(head + content)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert under_way() == 1
    until_s = time.monotonic() + 60
    while under_way():
        assert time.monotonic() < until_s
        time.sleep(0.1)
    assert re.search(r'shoal_requests_total\{[^}]*"cut"[^}]*\} 1\.0', ingress_metrics(guarded))


def ingress_metrics(cluster: Served) -> str:
    admin = cluster.ready["admin"]
    request = urllib.request.Request(f"{admin['url']}/targets")
    request.add_header("authorization", f"Bearer {admin['key']}")
    with urllib.request.urlopen(request, timeout=20) as answer:
        told = json.load(answer)
    [address] = [one["targets"][0] for one in told if one["labels"]["role"] == "ingress"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def listening(cluster: Served) -> set[tuple[str, str, int]]:
    """Every process of the cluster that listens, the driver included, and where."""
    return {
        (process.name(), one.laddr.ip, one.laddr.port)
        for process in [psutil.Process(cluster.process.pid), *cluster.descendants()]
        for one in process.net_connections(kind="inet")
        if one.status == psutil.CONN_LISTEN
    }


def told_by(port: int, method: str, path: str) -> int | None:
    """The status of what a stranger asks there; None: no HTTP, or metrics, which answer whatever is asked."""
    asked = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
            connection.sendall(asked.encode())
            answer = b""
            while b"\r\n\r\n" not in answer and (more := connection.recv(65536)):  # a head may come in pieces
                answer += more
    except OSError:
        return None
    found = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
    is_metrics = b"text/plain; version=" in answer
    return int(found[1]) if found and not is_metrics else None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/api/version", "/api/jobs/", "/api/serve/applications/", "/nodes")),
        *(("POST", path) for path in ("/api/jobs/", "/api/job_agent/jobs/")),
        *(("DELETE", path) for path in ("/api/jobs/x", "/api/serve/applications/", "/api/job_agent/jobs/x")),
        ("PUT", "/api/serve/applications/"),
    ],
)
def test_78_no_port_of_the_cluster_does_what_rays_dashboard_would(
    guarded: Served, method: str, path: str
) -> None:
    told = {(name, port): told_by(port, method, path) for name, _, port in listening(guarded)}
    assert any(told.values()), "the proxy, at least, speaks HTTP"
    assert {place: status for place, status in told.items() if status is not None and status < 400} == {}


def told_by_gcs(port: int, token: str | None) -> grpc.StatusCode:
    """What becomes of asking it for the nodes of the cluster."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(
                b"", timeout=20, metadata=metadata
            )
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_78_rays_head_tells_nobody_anything_without_the_token(guarded: Served) -> None:
    [gcs] = [process for process in guarded.descendants() if process.name() == "gcs_server"]
    token = Path(gcs.environ()["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    ports = [port for name, _, port in listening(guarded) if name == "gcs_server"]
    [port] = [port for port in ports if told_by_gcs(port, token) is grpc.StatusCode.OK]
    for other in (None, "0" * len(token)):
        assert told_by_gcs(port, other) is grpc.StatusCode.UNAUTHENTICATED


def test_nothing_listens_beyond_loopback(guarded: Served) -> None:
    """docs/security.md says so."""
    places = listening(guarded)
    assert len(places) >= 6, "the proxy, the admin listener, actors and Ray's own"
    assert urlsplit(guarded.url).port in {port for _, _, port in places}
    assert {place for place in places if not place[1].removeprefix("::ffff:").startswith("127.")} == set()
