"""An open loop over HTTP: requests leave when they are due, whoever still waits.

Knows nothing of which server answers, but for the words in which it wants to be asked.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from bench.mix import Request
from bench.outcome import Outcome
from cluster.api_client import DONE, events_in

CONNECT_S = 30.0
Ask = Callable[[Request], dict[str, Any]]  # the body, without the model
UNFINISHED = "unfinished"


def ask_shoal(request: Request) -> dict[str, Any]:
    return {
        "prompt": request.prompt,
        "max_tokens": request.new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def ask_transformers(request: Request) -> dict[str, Any]:
    """It takes text only; a byte is a token of our checkpoint. It ends where the model does."""
    text = "".join(chr(ord("a") + token % 26) for token in request.prompt)
    return {"prompt": text, "max_tokens": request.new_tokens, "temperature": 0}


def ask_all(url: str, model: str, ask: Ask, requests: Sequence[Request], patience_s: float) -> list[Outcome]:
    """In the order given; those that are not whole patience_s after the last arrival are given up."""
    return asyncio.run(_ask_all(url, model, ask, requests, patience_s))


async def _ask_all(
    url: str, model: str, ask: Ask, requests: Sequence[Request], patience_s: float
) -> list[Outcome]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(
        base_url=url,
        timeout=httpx.Timeout(None, connect=CONNECT_S),
        limits=limits,
        trust_env=False,
        verify=False,
    ) as client:
        start_s = time.perf_counter()
        outcomes = [
            Outcome(due_s=start_s + one.at_s, wanted_tokens=one.new_tokens, error=UNFINISHED)
            for one in requests
        ]
        tasks = [
            asyncio.create_task(_ask(client, {**ask(request), "model": model, "stream": True}, outcome))
            for request, outcome in zip(requests, outcomes, strict=True)
        ]
        _, late = await asyncio.wait(tasks, timeout=requests[-1].at_s + patience_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (failure := task.exception()) is not None:
                raise failure
    return outcomes


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], outcome: Outcome) -> None:
    await asyncio.sleep(outcome.due_s - time.perf_counter())
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                outcome.error = f"HTTP {response.status_code}"
                return
            buffer = bytearray()
            async for part in response.aiter_raw():
                buffer += part
                for data in events_in(buffer):
                    _take(outcome, data)
    except httpx.HTTPError as failure:
        outcome.error = type(failure).__name__


def _take(outcome: Outcome, data: str) -> None:
    if data == DONE:
        return
    event = json.loads(data)
    if "error" in event:
        outcome.error = str(event["error"])[:80]
        return
    for choice in event.get("choices", ()):
        # Who tells no ids tells text, a token or more at a time, and their number at the end.
        num_tokens = len(choice["token_ids"]) if "token_ids" in choice else int(bool(choice.get("text")))
        if num_tokens:
            outcome.take(num_tokens, time.perf_counter())
        if choice.get("finish_reason"):
            outcome.error = None
            if "token_ids" not in choice and event.get("usage"):
                outcome.num_tokens = event["usage"]["completion_tokens"]
