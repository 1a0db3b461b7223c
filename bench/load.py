"""The client: streaming requests over HTTP, timed.

What a user of the OpenAI API sees, and nothing of what is behind the URL.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from bench.timing import Answer, Prompt
from cluster.api_client import DONE, events_in

PATIENCE_S = 120.0  # between two events of a stream


class LoadError(RuntimeError):
    """A request was not answered as it should be; the text holds what came instead."""


def load(url: str, prompts: Sequence[Prompt], *, new_tokens: int, concurrency: int) -> list[Answer]:
    """Answers in the order of the prompts, never more than `concurrency` of them under way.

    Raises LoadError; whatever else was under way is given up.
    """
    try:
        return asyncio.run(_load(url, prompts, new_tokens, concurrency))
    except ExceptionGroup as group:
        failed, other = group.split(LoadError)
        if other is not None or failed is None:
            raise
        raise failed.exceptions[0] from None


async def _load(url: str, prompts: Sequence[Prompt], new_tokens: int, concurrency: int) -> list[Answer]:
    gate = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    verify = url.startswith("https:")  # else no certificates are needed, and to load them takes 0.1 s
    async with httpx.AsyncClient(
        base_url=url, timeout=PATIENCE_S, limits=limits, trust_env=False, verify=verify
    ) as client:
        model = await _model(client)

        async def one(prompt: Prompt) -> Answer:
            async with gate:
                return await _stream(client, _body(model, prompt, new_tokens))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(prompt)) for prompt in prompts]
    return [task.result() for task in tasks]


async def _model(client: httpx.AsyncClient) -> str:
    """The name of what is served."""
    with _failures_named():
        response = (await client.get("/v1/models")).raise_for_status()
    name: str = response.json()["data"][0]["id"]
    return name


@contextmanager
def _failures_named() -> Iterator[None]:
    """Failures of the connection as LoadError."""
    try:
        yield
    except httpx.HTTPError as error:
        raise LoadError(f"{type(error).__name__}: {error}") from error


def _body(model: str, prompt: Prompt, new_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }


async def _stream(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    token_ids: list[int] = []
    arrivals_s: list[float] = []
    sent_s = time.perf_counter()
    with _failures_named():
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise LoadError(f"HTTP {response.status_code}: {(await response.aread()).decode()[:300]}")
            async for data in _events(response):
                added = _token_ids(data)
                token_ids += added
                arrivals_s += [time.perf_counter()] * len(added)
    if len(token_ids) != body["max_tokens"]:
        raise LoadError(f"asked for {body['max_tokens']} tokens, {len(token_ids)} came")
    return Answer(token_ids=tuple(token_ids), sent_s=sent_s, arrivals_s=tuple(arrivals_s))


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of each event up to [DONE]."""
    buffer = bytearray()
    async for part in response.aiter_raw():
        buffer += part
        for data in events_in(buffer):
            if data != DONE:
                yield data


def _token_ids(data: str) -> list[int]:
    """What one event adds; raises LoadError if it reports an error."""
    event = json.loads(data)
    if "error" in event:
        raise LoadError(f"the stream ended in an error: {event['error']}")
    return [token for choice in event["choices"] for token in choice.get("token_ids", ())]
