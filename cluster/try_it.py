"""A text of the live page's own, continued by the API as for any client.

Passes bytes on as they come, so that whoever kills an actor sees what a client sees. Knows nothing of actors.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from starlette.responses import Response, StreamingResponse

CONNECT_S, SILENCE_S = 3.0, 120.0
MOST_TOKENS, MOST_CHARS, MOST_ERROR_BYTES = 1000, 4000, 4096


class BadTry(ValueError):  # noqa: N818 - named for what is, as the rest of the tree
    """What was asked for is not something that is passed on."""


async def continued(url: str, model: str, asked: Mapping[str, Any]) -> Response:
    """The API's stream of the likeliest text after `asked["prompt"]`, or its refusal. Raises BadTry."""
    prompt, key, most = asked.get("prompt"), asked.get("api_key", ""), asked.get("max_tokens", 200)
    if not isinstance(prompt, str) or not 0 < len(prompt) <= MOST_CHARS:
        raise BadTry(f"prompt is a text of up to {MOST_CHARS} characters")
    if not isinstance(key, str) or not key.isascii():
        raise BadTry("api_key is an ASCII text")
    if type(most) is not int or not 1 <= most <= MOST_TOKENS:
        raise BadTry(f"max_tokens is 1 to {MOST_TOKENS}")
    body = {"model": model, "prompt": prompt, "max_tokens": most, "temperature": 0, "stream": True}
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    client = httpx.AsyncClient(timeout=timeout, trust_env=False)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = client.build_request(
        "POST", f"{url}/v1/completions", json={**body, "ignore_eos": True}, headers=headers
    )
    try:
        answer = await client.send(request, stream=True)
    except httpx.HTTPError as error:
        await client.aclose()
        told = {"error": f"{url} cannot be reached from here: {type(error).__name__}"}
        return Response(json.dumps(told), status_code=502, media_type="application/json")
    if answer.status_code != httpx.codes.OK:
        refusal = (await answer.aread())[:MOST_ERROR_BYTES]
        await client.aclose()
        return Response(refusal, status_code=answer.status_code, media_type="application/json")
    return StreamingResponse(_passed_on(client, answer), media_type="text/event-stream")


async def _passed_on(client: httpx.AsyncClient, answer: httpx.Response) -> AsyncIterator[bytes]:
    """Ends with the API's stream, or where that breaks: its reader misses the last event."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    except httpx.HTTPError:
        return
    finally:
        await client.aclose()
