"""A client of the OpenAI API, as every command of `shoal` asks it.

Where the server is, its key, the model, streams as JSON chunks. Knows nothing of what is asked. Any OpenAI
endpoint will do.

Errors: ApiError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

PATIENCE_S = 120.0  # between two parts of an answer
DONE = "[DONE]"


class ApiError(RuntimeError):
    """The server is not there, or refuses; the text says why and, where it is known, what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A server: its URL without /v1, and a key or nothing."""

    url: str
    key: str = ""

    def options(self) -> dict[str, Any]:
        """Of an httpx client. Without TLS no certificates are loaded, which takes 0.1 s."""
        return {
            "base_url": self.url,
            "headers": {"authorization": f"Bearer {self.key}"} if self.key else {},
            "timeout": PATIENCE_S,
            "trust_env": False,
            "verify": self.url.startswith("https:"),
        }


class Api:
    """A context; closed when it is left."""

    def __init__(self, place: Place) -> None:
        self._place = place
        with _named(place):
            self._http = httpx.Client(**place.options())

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def model(self) -> str:
        """The first that is served."""
        with _named(self._place):
            response = self._http.get("/v1/models")
            check(response.status_code, response.text)
            name: str = response.json()["data"][0]["id"]
        return name

    def vocab_size(self) -> int | None:
        """None: the server does not tell, which only some do."""
        with _named(self._place):
            response = self._http.get("/tokenizer_info")
            told = response.json() if response.status_code == httpx.codes.OK else {}
            size = told.get("vocab_size")
        return size if isinstance(size, int) else None

    def chunks(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Of a stream; one that reports an error raises ApiError."""
        sent = {**body, "stream": True}
        with _named(self._place), self._http.stream("POST", path, json=sent) as response:
            if response.status_code != httpx.codes.OK:
                check(response.status_code, response.read().decode(errors="replace"))
            buffer = bytearray()
            for part in response.iter_raw():
                buffer += part
                for data in events_in(buffer):
                    if data != DONE:
                        yield chunk_of(data)


def events_in(buffer: bytearray) -> Iterator[str]:
    """Take the data of every whole server-sent event out of `buffer`; comments are skipped."""
    while (end := buffer.find(b"\n\n")) >= 0:
        event = bytes(buffer[:end]).decode()
        del buffer[: end + 2]
        if event.startswith("data: "):
            yield event.removeprefix("data: ")


def chunk_of(data: str) -> dict[str, Any]:
    """One event; raises ApiError if it reports an error."""
    chunk: dict[str, Any] = json.loads(data)
    if "error" in chunk:
        raise ApiError(f"the stream ended in an error: {chunk['error'].get('message')}")
    return chunk


def check(status: int, text: str) -> None:
    """Raises ApiError unless `status` is 200, with the server's own words where they are in shape."""
    if status == httpx.codes.OK:
        return
    try:
        words = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        words = text[:200]
    remedy = "; give a key with --key or SHOAL_API_KEY" if status == httpx.codes.UNAUTHORIZED else ""
    raise ApiError(f"HTTP {status}: {words}{remedy}")


@contextmanager
def _named(place: Place) -> Iterator[None]:
    """Failures of the connection, and answers of another shape than the API's, as ApiError."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ApiError(f"{place.url} does not answer ({error}); is `shoal serve` running?") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ApiError(f"{place.url} does not speak the OpenAI API: {type(error).__name__}") from None
