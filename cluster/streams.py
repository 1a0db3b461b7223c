"""A load of streams, with every event journalled.

Threads that each ask, read an answer to its end and ask again, as clients of the OpenAI API do. Knows nothing
of what is behind the URL, nor of faults.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cluster.history import CUT, StreamEvent

PAUSE_S = 0.2  # after an answer without an end
PATIENCE_S = 90.0  # for the next bytes of a stream
FIRST_BYTE_ID, LAST_BYTE_ID = 16, 271  # of the byte tokenizer; in any other vocabulary tokens as well
SHORT_TOKENS = (8, 48)
LONG_TOKENS = (200, 260)  # more than three pages


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt and how to sample; the same question has the same answer.

    is_salted: each time it is asked, it shares no pages with any other request.
    """

    name: str
    prompt: tuple[int, ...]
    temperature: float
    seed: int
    max_tokens: int
    is_salted: bool = False

    def body(self, model: str, request: str) -> dict[str, Any]:
        salt = {"cache_salt": request} if self.is_salted else {}
        return {
            **salt,
            "model": model,
            "prompt": list(self.prompt),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def make_questions(count: int, *, seed: int, max_tokens: int, vocab_size: int) -> list[Question]:
    """Questions of random tokens.

    Of every six, two are sampled, the others greedy; two are pages long, one of them salted.
    """
    generator = random.Random(seed)
    return [
        Question(
            name=f"q{number}",
            prompt=tuple(
                generator.randrange(FIRST_BYTE_ID, vocab_size)
                for _ in range(generator.randint(*(LONG_TOKENS if number % 3 == 1 else SHORT_TOKENS)))
            ),
            temperature=0.8 if number % 3 == 2 else 0.0,
            seed=number,
            max_tokens=max_tokens,
            is_salted=number % 6 == 1,
        )
        for number in range(count)
    ]


class Streams:
    """Within the block `count` streams are always under way; `history` holds what came."""

    def __init__(self, url: str, model: str, questions: Sequence[Question], count: int) -> None:
        self._url, self._model = url, model
        self._questions = questions
        self._numbers = itertools.count()
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask_on, name=f"stream {i}", daemon=True) for i in range(count)
        ]
        self.history: list[StreamEvent] = []
        self.asked: dict[str, Question] = {}  # by request

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let every answer come to its end."""
        self._ending.set()
        for thread in self._threads:
            thread.join()

    @property
    def num_tokens(self) -> int:
        return sum(event.kind == "token" for event in list(self.history))

    @property
    def num_ended(self) -> int:
        return sum(event.kind == "end" for event in list(self.history))

    def _ask_on(self) -> None:
        while not self._ending.is_set():
            number = next(self._numbers)
            question = self._questions[number % len(self._questions)]
            request = f"{question.name}.{number}"
            self.asked[request] = question
            for event in ask(self._url, self._model, question, request):
                self.history.append(event)
            if event.num_tokens is None:  # refused, or cut: those behind it need a moment
                self._ending.wait(PAUSE_S)


def ask(url: str, model: str, question: Question, request: str) -> Iterator[StreamEvent]:
    """The events of one request, as they come."""
    yield StreamEvent(kind="sent", request=request, at_s=time.monotonic())
    sequence, finish, num_tokens = itertools.count(), CUT, None
    try:
        for data in _events(url, question.body(model, request)):
            if "error" in data:
                error = data["error"]
                finish = f"error: {error.get('code') or ''} {error.get('message', '')[:200]}"
                break
            if data.get("usage"):
                num_tokens = data["usage"]["completion_tokens"]
            for choice in data.get("choices", ()):
                finish = choice.get("finish_reason") or finish
                for token_id in choice.get("token_ids") or ():
                    yield StreamEvent(
                        kind="token",
                        request=request,
                        at_s=time.monotonic(),
                        sequence=next(sequence),
                        token_id=token_id,
                    )
    except (OSError, http.client.HTTPException) as error:
        finish = f"{CUT}: {type(error).__name__}"
    if num_tokens is None and finish in ("length", "stop"):
        finish = f"{CUT}: no usage"
    yield StreamEvent(
        kind="end", request=request, at_s=time.monotonic(), finish=finish, num_tokens=num_tokens
    )


def _events(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The data of each server-sent event up to [DONE]; an answer that is no stream is an error event."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=PATIENCE_S)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            yield {
                "error": {"message": f"HTTP {response.status}: {response.read(300).decode(errors='replace')}"}
            }
            return
        for line in response:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                yield json.loads(line.removeprefix(b"data: "))
    finally:
        connection.close()
